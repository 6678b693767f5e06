"""Archives that the system's libarchive reads, in a child that can do nothing else; made by the programs themselves."""

import ctypes
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import packed
import pytest
import servers
import strace
from tricks import tarred

from deliver.content import libarchive, limited
from deliver.content.archives import Member, members
from deliver.content.bounds import Bounds
from deliver.content.filetypes import kind_of

EXE = b"MZ\x90\x00" + bytes(range(256)) * 20
FILES = {"one.txt": b"text\n", "dir/two.exe": EXE, "K\xe4se.pdf": b"%PDF-1.7\n"}
HERE = str(Path(__file__).resolve().parent.parent)

TAR = tarred("evil.exe", EXE)
ZIP = packed.zip_of(b"evil.exe", EXE, len(EXE), method=0)
LZMA1 = [{"id": lzma.FILTER_LZMA1, "lc": 0, "lp": 2, "pb": 0, "dict_size": 1 << 16}]
WRAPPED = {
    "lzma with other properties": (lzma.compress(TAR, lzma.FORMAT_ALONE, filters=LZMA1), "a.tar.lzma"),
    "a zip behind a gzip": (gzip.compress(b"hello") + ZIP, "a.zip"),
    "a zip behind a tar": (tarred("a.txt", b"hello") + ZIP, "a.zip"),
    "a tar behind the end of another": (tarred("a.txt", b"hello") + TAR, "a.tar"),
}

MAKERS: dict[str, list[str]] = {
    "a.7z": ["7zz", "a", "-bd", "-y", "{to}", "."],
    "solid.7z": ["7zz", "a", "-bd", "-y", "-ms=on", "-mx=9", "{to}", "."],
    "a.iso": ["xorriso", "-as", "mkisofs", "-quiet", "-J", "-R", "-o", "{to}", "."],
    "a.cab": ["gcab", "-c", "{to}", "one.txt", "dir/two.exe", "K\xe4se.pdf"],
    "a.cpio": ["bsdtar", "-cf", "{to}", "--format=newc", "."],
    "old.cpio": ["bsdtar", "-cf", "{to}", "--format=bin", "."],
    "a.xar": ["bsdtar", "-cf", "{to}", "--format=xar", "."],
    "a.tar.zst": ["bsdtar", "-cf", "{to}", "--zstd", "."],
    "a.tar.lz": ["bsdtar", "-cf", "{to}", "--lzip", "."],
    "a.tar.lz4": ["bsdtar", "-cf", "{to}", "--lz4", "."],
    "a.tar.Z": ["bsdtar", "-cf", "{to}", "--compress", "."],
    "a.tar.lzma": ["bsdtar", "-cf", "{to}", "--lzma", "."],
}


def make(folder: Path, name: str, *more: str) -> bytes:
    """An archive of FILES, by the program that makes them."""
    words = MAKERS[name]
    program = servers.needs(words[0])
    here = folder / "files"
    for path, content in FILES.items():
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_bytes(content)
    to = folder / name
    done = subprocess.run(
        [program, *(word.format(to=to) for word in words[1:-1]), *more, words[-1]],
        cwd=here, env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    return to.read_bytes()


def look(data: bytes, name: str = "a", *, whole: bool = False) -> tuple[list[Member], str]:
    bounds = Bounds(whole)
    kind = kind_of(data, [name])
    return list(members(data, kind, name, bounds)) if kind else [], bounds.exceeded


@pytest.mark.parametrize("name", MAKERS)
def test_names_and_first_bytes(name: str, tmp_path: Path) -> None:
    found, unread = look(make(tmp_path, name), name)
    files = {one.path.removeprefix("./"): one for one in found if one.path.removeprefix("./") not in {"a.tar", ""}}
    assert unread == ""
    assert sorted(files) == sorted(FILES)
    assert files["dir/two.exe"].detected == "application/vnd.microsoft.portable-executable"
    assert files["K\xe4se.pdf"].detected == "application/pdf"


@pytest.mark.parametrize("name", ["a.7z", "solid.7z", "a.iso", "a.cab", "a.tar.zst"])
def test_all_that_the_files_hold(name: str, tmp_path: Path) -> None:
    found, unread = look(make(tmp_path, name), name, whole=True)
    held = {one.path.removeprefix("./"): one.content for one in found}
    assert unread == ""
    assert {path: held[path] for path in FILES} == FILES


def test_archives_in_archives(tmp_path: Path) -> None:
    servers.needs("7zz")
    inner = make(tmp_path, "a.7z")
    found, unread = look(packed.zip_of(b"in.7z", inner, len(inner), method=0))
    assert unread == ""
    assert [(one.inside, one.path) for one in found if one.path.endswith("exe")] == [(("in.7z",), "dir/two.exe")]


def test_encrypted_files_have_names(tmp_path: Path) -> None:
    found, unread = look(make(tmp_path, "a.7z", "-psecret"))
    assert {one.path: one.encrypted for one in found} == dict.fromkeys(FILES, True)
    assert unread == ""


def test_encrypted_names(tmp_path: Path) -> None:
    found, unread = look(make(tmp_path, "a.7z", "-psecret", "-mhe=on"))
    assert [(one.path, one.encrypted) for one in found] == [("", True)]
    assert unread == ""


def test_rar() -> None:
    found, unread = look(packed.rar((b"one.txt", b"text\n", False), (b"two.exe", EXE, False)))
    assert [(one.path, one.content, one.encrypted) for one in found] == [
        ("one.txt", b"text\n", False),
        ("two.exe", EXE, False),
    ]
    assert unread == ""


def test_encrypted_rar() -> None:
    found, unread = look(packed.rar((b"one.txt", b"text\n", False), (b"two.exe", os.urandom(64), True)))
    assert [(one.path, one.encrypted) for one in found] == [("one.txt", False), ("two.exe", True)]
    assert unread == ""
    found, unread = look(packed.rar(header=True))
    assert [(one.path, one.encrypted) for one in found] == [("", True)]


@pytest.mark.parametrize("name", ["a.7z", "a.cab"])
def test_programs_that_unpack_themselves(name: str, tmp_path: Path) -> None:
    found, _ = look(EXE + make(tmp_path, name) + b"more", "setup.exe")
    assert "dir/two.exe" in [one.path for one in found]


def test_zip_and_rar_behind_a_program() -> None:
    zipped = packed.zip_of(b"x.js", b"code", 4, method=0)
    assert [one.path for one in look(EXE + zipped, "setup.exe")[0]] == ["x.js"]
    assert [one.path for one in look(EXE + packed.rar((b"x.js", b"code", False)), "a.rar")[0]] == ["x.js"]
    assert look(EXE + b"7z\xbc\xaf\x27\x1c\x00\x04 Rar!\x1a\x07\x00 MSCF\x00\x00\x00\x00 PK\x03\x04", "7z.exe") == (
        [],
        "",
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(100), "cannot be read"),
        (b"Rar!\x1a\x07\x00" + b"\xff" * 100, "cannot be read"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "cannot be read"),
        (b"1234567**ACE**" + bytes(100), "nothing here knows x-ace"),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, words: str) -> None:
    assert words in look(data)[1]


def test_damage_is_said_and_names_stay(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path, "a.7z"))
    data[32:48] = bytes(16)  # of what is packed, behind the header of 32 bytes
    found, unread = look(bytes(data))
    assert sorted(one.path for one in found) == sorted(FILES)
    assert "cannot be read" in unread


def test_damage_anywhere_raises_nothing(tmp_path: Path) -> None:
    data = make(tmp_path, "a.7z")
    whole = set(FILES)
    for at in range(0, len(data), len(data) // 12):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        for one in (bytes(damaged), data[: at + 8]):
            found, unread = look(one)
            assert unread or {member.path for member in found} >= whole or not kind_of(one, ["a"])


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(libarchive, "_LIBRARY", "libno-such-thing.so.13")
    monkeypatch.setattr(libarchive, "_write", lambda letter, held=b"": said.append((letter, held)))
    libarchive.main(["application/vnd.rar", "1", "1", "heads"])
    assert said[0] == (b"W", b"libarchive is not installed (Debian's package libarchive13)")
    assert said[-1][0] == b"Z"


def test_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    _, unread = look(packed.rar((b"x", b"y", False)))
    assert "cannot be run: No such file or directory" in unread


def child(tmp_path: Path, body: str, seconds: float = 5, most: int = 10_000) -> tuple[bytes, str]:
    """What a module of the test's own writes as the child."""
    folder = tmp_path / "deliver" / "content"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "limited.py").write_text(Path(limited.__file__).read_text())
    (folder / "odd.py").write_text(body)
    words = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom deliver.content import limited\n"
        "output, cut = limited.run('odd', [], b'data', float(sys.argv[2]), int(sys.argv[3]))\n"
        "sys.stdout.buffer.write(output[:100] + b'|' + cut.encode())"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", words, str(tmp_path), str(seconds), str(most)],
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    output, _, cut = done.stdout.partition(b"|")
    return output, cut.decode()


@pytest.mark.parametrize(
    ("body", "output", "cut"),
    [
        ("import os\ndef main(a): os.write(1, os.read(0, 9))", b"data", ""),
        ("def main(a):\n while True: pass", b"", "it takes too long"),
        ("import os\ndef main(a):\n while True: os.write(1, b'x' * 5000)", b"x" * 100, "it holds too much"),
        ("import os\ndef main(a): os.abort()", b"", "its reader was ended by signal 6"),
    ],
)
def test_the_child_is_ended(body: str, output: bytes, cut: str, tmp_path: Path) -> None:
    assert child(tmp_path, body, seconds=1) == (output, cut)


def test_the_child_can_do_nothing_else(tmp_path: Path) -> None:
    body = f"""
import os, socket
from deliver.content import limited
def main(arguments):
    limited.confine(2, 100 << 20)
    for name, attempt in (
        ("read", lambda: open("/etc/passwd")),
        ("write", lambda: open("{tmp_path}/written", "w")),
        ("pipe", os.pipe),
        ("socket", socket.socket),
        ("memory", lambda: bytearray(200 << 20)),
    ):
        try:
            attempt()
        except (OSError, MemoryError):
            continue
        os.write(1, name.encode() + b" ")
    os.write(1, repr(sorted(os.environ)).encode())
"""
    output, cut = child(tmp_path, body)
    assert cut == ""
    assert output in {b"['LC_ALL']", b"['LC_ALL', 'LC_CTYPE']"}


def test_it_gives_up_its_rights_before_it_reads(tmp_path: Path) -> None:
    archive = tmp_path / "a.rar"
    archive.write_bytes(packed.rar((b"x", b"y", False)))
    start = limited._START.format(module="libarchive")
    words = [strace.needed(), "-e", "trace=prlimit64,openat,read,lseek", "-o", str(tmp_path / "trace")]
    words += [sys.executable, "-I", "-S", "-c", start, HERE, "application/vnd.rar", "9", "999", "heads"]
    with archive.open("rb") as file:
        subprocess.run(words, stdin=file, check=True, capture_output=True)
    trace = (tmp_path / "trace").read_text()
    before, _, after = trace.partition("RLIMIT_NOFILE, {rlim_cur=3,")
    for limit in ("RLIMIT_AS, {", "RLIMIT_CPU, {", "RLIMIT_FSIZE, {rlim_cur=0"):
        assert limit in before
    assert "read(0," not in before
    assert "read(0," in after
    assert "openat(" not in after


def test_nothing_is_left_of_the_child(tmp_path: Path) -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")  # proc(5)
    before = set(os.listdir("/proc/self/fd")), children.read_text()
    look(packed.rar((b"x", b"y", False)))
    assert (set(os.listdir("/proc/self/fd")), children.read_text()) == before


@pytest.mark.parametrize(
    ("flags", "method"), [(1, 8), (1, 99), (0x2041, 8), (0x41, 0)], ids=["traditional", "aes", "directory", "strong"]
)
def test_encryption_in_zip(flags: int, method: int) -> None:
    found, unread = look(packed.zip_of(b"x.exe", os.urandom(40), 28, flags=flags, method=method))
    assert [(one.path, one.encrypted) for one in found] == [("x.exe", True)]
    assert unread == ""


def test_zip_encrypted_by_a_program(tmp_path: Path) -> None:
    program = servers.needs("7zz")
    (tmp_path / "x.exe").write_bytes(EXE)
    for method in ("ZipCrypto", "AES256"):
        to = tmp_path / f"{method}.zip"
        words = [program, "a", "-bd", "-psecret", f"-mem={method}", str(to), "x.exe"]
        subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
        assert [(one.path, one.encrypted) for one in look(to.read_bytes())[0]] == [("x.exe", True)]


@pytest.mark.parametrize("method", ["Deflate", "BZip2", "LZMA", "Copy"])
def test_ways_of_packing_in_zip(method: str, tmp_path: Path) -> None:
    program = servers.needs("7zz")
    (tmp_path / "in.zip").write_bytes(packed.zip_of(b"evil.exe", EXE, len(EXE), method=0))
    to = tmp_path / "a.zip"
    words = [program, "a", "-bd", f"-mm={method}", str(to), "in.zip"]
    subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
    found, unread = look(to.read_bytes())
    assert [one.path for one in found] == ["in.zip", "evil.exe"]
    assert unread == ""


@pytest.mark.parametrize("method", ["Deflate64", "PPMd"])
def test_other_ways_are_said_to_be_unread(method: str, tmp_path: Path) -> None:
    program = servers.needs("7zz")
    (tmp_path / "in.zip").write_bytes(packed.zip_of(b"evil.exe", EXE, len(EXE), method=0))
    to = tmp_path / "a.zip"
    words = [program, "a", "-bd", f"-mm={method}", str(to), "in.zip"]
    subprocess.run(words, cwd=tmp_path, capture_output=True, check=True)
    found, unread = look(to.read_bytes())
    assert [one.path for one in found] == ["in.zip"]
    assert "packed in a way that cannot be read" in unread


def test_a_forged_size_hides_nothing() -> None:
    """The first file says that it is as long as all that follows; by the directory there are two."""
    first, second = (packed.zip_of(name, name, 5, method=0) for name in (b"a.txt", b"b.exe"))
    locals_ = [one[: one.index(b"PK\x01\x02")] for one in (first, second)]
    centrals = [one[one.index(b"PK\x01\x02") : one.index(b"PK\x05\x06")] for one in (first, second)]
    centrals[1] = centrals[1][:42] + struct.pack("<I", len(locals_[0])) + centrals[1][46:]
    directory = b"".join(centrals)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 2, 2, len(directory), len(b"".join(locals_)), 0)
    size = len(locals_[1]) + len(directory) + 5
    locals_[0] = locals_[0][:18] + struct.pack("<II", size, size) + locals_[0][26:]
    found, _ = look(b"".join(locals_) + directory + end)
    assert [one.path for one in found] == ["a.txt", "b.exe"]


def test_sizes_that_only_the_directory_knows() -> None:
    """A stored file with its sizes behind it (APPNOTE.TXT section 4.3.9), and first bytes that look like an end."""
    held = EXE + b"PK\x07\x08" + EXE
    whole = packed.zip_of(b"x.exe", held, len(held), flags=8, method=0)
    data = whole[:18] + bytes(8) + whole[26:]
    found, unread = look(data, whole=True)
    assert [(one.path, one.content) for one in found] == [("x.exe", held)]
    assert unread == ""


def test_gzip_in_a_row_is_one() -> None:
    def member(data: bytes) -> bytes:
        deflate = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        return deflate.compress(data) + deflate.flush()

    zipped = packed.zip_of(b"evil.exe", EXE, len(EXE), method=0)
    found, unread = look(member(zipped[:10]) + member(zipped[10:]), "a.zip.gz")
    assert [one.path for one in found] == ["a.zip", "evil.exe"]
    assert unread == ""


def test_padding_between_several_in_a_row() -> None:
    """The .xz file format, section 2.2: NULs, four at a time."""
    tar = b"".join(lzma.compress(piece) + bytes(8) for piece in (TAR[:700], TAR[700:]))
    found, unread = look(tar, "a.tar.xz")
    assert [one.path for one in found] == ["a.tar", "evil.exe"]
    assert unread == ""


@pytest.mark.parametrize(("data", "name"), WRAPPED.values(), ids=WRAPPED)
def test_what_its_first_bytes_do_not_tell(data: bytes, name: str) -> None:
    assert "evil.exe" in [one.path for one in look(data, name)[0]]


def test_a_zip_whose_files_are_not_where_it_says_is_damaged() -> None:
    """Programs that repair archives find such a file by the directory."""
    whole = packed.zip_of(b"evil.exe", EXE, len(EXE), method=0)
    found, unread = look(whole[1:], "a.zip")
    assert [one.path for one in found] == ["evil.exe"]
    assert "not where its directory says" in unread


def test_a_file_without_a_name_may_hold_others() -> None:
    inner = packed.zip_of(b"evil.exe", EXE, len(EXE), method=0)
    found, _ = look(packed.zip_of(b"", inner, len(inner), method=0))
    assert [one.path for one in found] == ["", "evil.exe"]


def test_many_empty_files_take_no_time() -> None:
    """Each says nowhere how large it is; the next header is near."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(5000):
            file.writestr(f"{number}.txt", b"")
        file.writestr("large", bytes(20_000_000))
    begun = time.process_time()
    found, unread = look(archive.getvalue(), "a.zip")
    assert time.process_time() - begun < 1.5
    assert (len(found), unread) == (5001, "")


def test_libarchive_is_there() -> None:
    """Without it the tests above would say so, each in its own words."""
    ctypes.CDLL(libarchive._LIBRARY)
