"""The files in archives: all that any program could find there, within bounds, whatever the archive is like."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import time
import zipfile

import corpora
import pytest
from packed import zipped

from deliver.content import bounds as limits
from deliver.content.archives import Member, members
from deliver.content.bounds import Bounds
from deliver.content.filetypes import detect, extension, kind_of

EXE = b"MZ\x90\x00" + b"\x00" * 100
PE = "application/vnd.microsoft.portable-executable"


def look(data: bytes, name: str = "a") -> tuple[list[Member], Bounds]:
    bounds = Bounds()
    kind = kind_of(data[:4096], [name])
    return list(members(data, kind, name, bounds)) if kind else [], bounds


def paths(data: bytes, name: str = "a") -> list[str]:
    found, bounds = look(data, name)
    assert not bounds.exceeded
    return [one.path for one in found]


def tarred(*files: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return written.getvalue()


FILES = (("one.txt", b"text"), ("dir/two.exe", EXE), ("Käse.pdf", b"%PDF-1.7"))


@pytest.mark.parametrize(
    "data",
    [
        zipped(*FILES),
        zipped(*FILES, method=zipfile.ZIP_STORED),
        tarred(*FILES),
        tarred(*FILES, form=tarfile.PAX_FORMAT),
        tarred(*FILES, form=tarfile.USTAR_FORMAT),
    ],
)
def test_files_are_named_and_known_by_their_first_bytes(data: bytes) -> None:
    found, _ = look(data)
    assert [(one.path, one.detected) for one in found] == [
        ("one.txt", "text/plain"),
        ("dir/two.exe", PE),
        ("Käse.pdf", "application/pdf"),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_tar(form: int) -> None:
    name = "directory/" * 30 + "file.exe"
    assert paths(tarred((name, b"x"), ("short", b"y"), form=form)) == [name, "short"]


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (gzip.compress(EXE), "evil.exe.gz", ["evil.exe"]),
        (gzip.compress(EXE), "", ["data"]),
        (
            b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"inner.exe\0" + gzip.compress(EXE)[10:],
            "x.gz",
            ["inner.exe"],
        ),
        (bz2.compress(EXE), "evil.exe.bz2", ["evil.exe"]),
        (lzma.compress(EXE), "evil.exe.xz", ["evil.exe"]),
        (gzip.compress(tarred(*FILES)), "a.tgz", ["a.tar", *(name for name, _ in FILES)]),
        (bz2.compress(tarred(*FILES)), "a.tar.bz2", ["a.tar", *(name for name, _ in FILES)]),
        (lzma.compress(tarred(*FILES)), "a.txz", ["a.tar", *(name for name, _ in FILES)]),
        (
            zipped(("b.tar.gz", gzip.compress(tarred(("evil.exe", EXE)), mtime=0))),
            "a",
            ["b.tar.gz", "b.tar", "evil.exe"],
        ),
        (zipped(("b.zip", zipped(("c", b"x"))), ("d", b"y")), "a", ["b.zip", "c", "d"]),
        (zipped(("b.zip", zipped(("c", b"x"))), ("d", b"y"), method=zipfile.ZIP_STORED), "a", ["b.zip", "c", "d"]),
    ],
)
def test_archives_in_archives(data: bytes, name: str, expected: list[str]) -> None:
    assert paths(data, name) == expected


def test_a_name_that_only_one_directory_of_a_zip_has_is_found() -> None:
    data = zipped(("harmless.txt", b"x"))
    end = data.index(b"PK\x01\x02")
    forged = data[:end] + data[end:].replace(b"harmless.txt", b"terrible.exe")
    assert paths(forged) == ["harmless.txt", "terrible.exe"]
    local = data[:end].replace(b"harmless.txt", b"terrible.exe") + data[end:]
    assert paths(local) == ["terrible.exe", "harmless.txt"]
    found, bounds = look(data[:end])  # cut off
    assert [one.path for one in found] == ["harmless.txt"]
    assert "no directory" in bounds.exceeded


def test_the_malformed_archives_of_others_are_read_as_far_as_they_go() -> None:
    found = {}
    for path in corpora.needs("hostile-yauzl-zip").rglob("*.zip"):
        data = path.read_bytes()
        bounds = Bounds()
        found[path.name] = [one.path for one in members(data, "application/zip", path.name, bounds)]
        if "failure" not in path.parts:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = [info.filename for info in archive.infolist() if not info.filename.endswith("/")]
            if path.name != "unicode-path-extra-field.zip":
                assert set(names) <= {one.replace("\\", "/") for one in found[path.name]} | set(found[path.name]), path
    assert len(found) > 40
    assert found["absolute_path_C_xt.zip"] == ["a.txt", "b.txt", "C:/xt"]


def test_encrypted_entries_are_told() -> None:
    for path in corpora.needs("hostile-yauzl-zip").rglob("traditional-encryption*.zip"):
        found, _ = look(path.read_bytes())
        assert found
        assert all(one.encrypted for one in found), path


@pytest.mark.parametrize(
    ("head", "names", "kind"),
    [
        (zipped(("x", b"y")), ["a.pdf"], "application/zip"),
        (zipped(("[Content_Types].xml", b""), ("word/document.xml", b"")), ["a.docx"], ""),
        (zipped(("[Content_Types].xml", b""), ("word/document.xml", b"")), ["a.zip"], "application/zip"),
        (zipped(("[Content_Types].xml", b""), ("word/document.xml", b"")), [], "application/zip"),
        (tarred(("x", b"y")), [], "application/x-tar"),
        (b"%PDF-1.4", ["a.zip"], "somewhere"),
        (b"%PDF-1.4", ["a.pdf"], ""),
        (tarred(("x", b"y")), ["a.zip"], "somewhere"),
        (zipped(("x", b"y")), ["a.jar"], "application/zip"),
        (b"", ["a.zip"], ""),
    ],
)
def test_what_is_opened_as_an_archive(head: bytes, names: list[str], kind: str) -> None:
    assert kind_of(head, names) == kind


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (zipped(("[Content_Types].xml", b""), ("word/document.xml", b"")), "wordprocessingml.document"),
        (zipped(("[Content_Types].xml", b""), ("xl/workbook.xml", b"")), "spreadsheetml.sheet"),
        (
            zipped(("mimetype", b"application/vnd.oasis.opendocument.text"), method=zipfile.ZIP_STORED),
            "application/vnd.oasis.opendocument.text",
        ),
        (zipped(("META-INF/MANIFEST.MF", b"")), "application/java-archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd\x28\xb5\x2f\xfd", "application/zstd"),  # RFC 8878 section 3.1.2
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"XXXX\0\0\0\0WEBP", "application/octet-stream"),
        (b"<!DOCTYPE HTML><html>", "text/html"),
        ("Grüße".encode(), "text/plain"),
        (b"\x00\x01", "application/octet-stream"),
        (b"", ""),
    ],
)
def test_types_by_first_bytes(head: bytes, expected: str) -> None:
    assert detect(head).endswith(expected)
    assert bool(detect(head)) == bool(expected)


def test_the_types_of_real_files() -> None:
    folder = corpora.needs("mime-cpython-testemail")
    for name in ("png", "jpg", "gif", "tiff", "webp", "bmp"):
        assert detect((folder / f"python.{name}").read_bytes()[:4096]) == f"image/{name.replace('jpg', 'jpeg')}"


def test_extensions() -> None:
    assert [extension(name) for name in ("a.EXE", "a.b.c", "a", ".profile", "a.")] == ["exe", "c", "", "", ""]


def nested(depth: int) -> bytes:
    data = EXE
    for level in range(depth):
        data = zipped((f"{level}.zip", data))
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped(("a.tar", tarred(("z", b"\0" * 70_000_000)))), "too much"),
        (gzip.compress(tarred(("z", b"\0" * 70_000_000))), "too much"),
        (zipped(*((f"{n}.tar", b"\0" * 257 + b"ustar" + b"\0" * 1_000_000) for n in range(70))), "too much"),
        (zipped(*((f"{n}", b"") for n in range(10_100))), "too many files"),
        (nested(7), "too deep"),
        (b"PK\x03\x04" * 2_000_000, "too many files"),
        (b"PK\x03\x04" + b"\0" * 26 + b"PK\x01\x02" * 2_000_000, "too many files"),
    ],
)
def test_bombs_are_left_alone(data: bytes, words: str) -> None:
    start = time.process_time()
    found, bounds = look(data)
    assert time.process_time() - start < 10
    assert words in bounds.exceeded
    assert len(found) <= limits.MOST_FILES


def test_a_tar_without_end_ends() -> None:
    block = bytearray(tarred(("x", b""))[:512])
    block[124:136] = b"\x80" + b"\xff" * 11  # a size of 2**88
    found, bounds = look(bytes(block) + b"\1" * 2048)
    assert [one.path for one in found] == ["x"]
    assert "ends too early" in bounds.exceeded
    start = time.process_time()
    look(tarred(("x", b""))[:512] * 60_000)
    assert time.process_time() - start < 5


def test_damage_anywhere_raises_nothing() -> None:
    data = zipped(
        ("a.zip", zipped(*FILES)), ("b.tgz", gzip.compress(tarred(*FILES), mtime=0)), ("c.xz", lzma.compress(EXE))
    )
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        look(bytes(damaged))
        look(data[:at])
    assert struct.calcsize("<6xHH8xI4xHH") == 30  # APPNOTE.TXT section 4.3.7
    assert struct.calcsize("<8xH18xH") == 30
