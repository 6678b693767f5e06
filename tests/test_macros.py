"""Macros and passwords in documents; what oletools finds is the measure where it is there."""

import io
import struct

import corpora
import packed
import pytest
from packed import zipped

from deliver.content import attachments, macros
from deliver.content.bounds import Bounds

WORD = b"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
# [MS-OVBA] 2.3.4.1: the stream's mark; what it holds besides is for one version of Office only.
PROJECT = packed.ole("VBA/", "PROJECT", "VBA/dir", "VBA/_VBA_PROJECT", held={"VBA/_VBA_PROJECT": b"\xcc\x61\xff\xff"})
PLAIN = packed.ole("1Table", "WordDocument")


def types(kind: bytes = WORD, more: bytes = b"") -> tuple[str, bytes]:
    text = b'<Types><Override PartName="/word/document.xml" ContentType="%s"/>%s</Types>' % (kind, more)
    return "[Content_Types].xml", text


BODY = ("word/document.xml", b"<w:document/>")
VBA_TYPE = b'<Override PartName="/word/a.dat" ContentType="application/vnd.ms-office.vbaProject"/>'


def workbook(*records: tuple[int, bytes]) -> bytes:
    """[MS-XLS] 2.1.4: number, size, and what it holds."""
    said = b"".join(
        struct.pack("<HH", number, len(held)) + held for number, held in ((0x809, bytes(16)), *records, (0x0A, b""))
    )
    return packed.ole("Workbook", held={"Workbook": said})


def sheet(kind: int) -> tuple[int, bytes]:
    """[MS-XLS] 2.4.28: BoundSheet8."""
    return 0x85, struct.pack("<IBB", 0, 0, kind) + b"\x01\x00A"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.docm", zipped(types(), BODY, ("word/vbaProject.bin", PROJECT)), True),
        ("a.docx", zipped(types(), BODY, ("word/VBAPROJECT.BIN", b"")), True),
        ("a.docx", zipped(types(), BODY, ("deep/in/the/file/a.dat", PROJECT)), True),
        ("a.docx", zipped(types(more=VBA_TYPE), BODY, ("word/a.dat", b"?")), True),
        ("a.docx", zipped(types(b"application/vnd.ms-word.document.macroEnabled.main+xml"), BODY), True),
        ("a.xlsx", zipped(types(), ("xl/macrosheets/sheet1.xml", b"<x/>")), True),
        ("a.docx", zipped((types()[0], types(more=VBA_TYPE)[1].decode().encode("utf-16")), BODY), True),
        ("a.docx", zipped(types(), BODY, ("word/embeddings/a.docm", zipped(types(more=VBA_TYPE), BODY))), True),
        ("a.docx", zipped(types(), BODY, ("word/embeddings/oleObject1.bin", PROJECT)), True),
        ("a.docx", zipped(types(), BODY, ("word/embeddings/oleObject1.bin", PLAIN)), False),
        ("a.docx", zipped(types(), BODY), False),
        ("a.odt", zipped(("mimetype", b"application/vnd.oasis.opendocument.text"), ("Basic/script-lc.xml", b"")), True),
        ("a.odt", zipped(("mimetype", b"application/vnd.oasis.opendocument.text"), ("content.xml", b"")), False),
        ("a.doc", packed.ole("Macros/", "WordDocument", "Macros/VBA/", "Macros/VBA/_VBA_PROJECT"), True),
        ("a.doc", packed.ole("WordDocument", "macros/", "macros/vba/", "macros/vba/_vba_project"), True),
        ("a.doc", PLAIN, False),
        ("a.doc", packed.ole("WordDocument", held={"WordDocument": b"x" + PROJECT[512 + 3 * 4096 :][:512]}), False),
        ("a.txt", packed.ole("_VBA_PROJECT_CUR/", "Workbook"), True),
        ("a.xls", workbook(sheet(0)), False),
        ("a.xls", workbook(sheet(0), sheet(1)), True),
        ("a.doc", b'<?xml version="1.0"?><?mso-application progid="Word.Document"?><a w:macrosPresent="yes"/>', True),
        ("a.doc", b'<?xml version="1.0"?><?mso-application progid="Word.Document"?><a/>', False),
        ("a.doc", b"MIME-Version: 1.0\nContent-Type: multipart/related\n\nQWN0aXZlTWltZQ", True),
        ("a.txt", b"vbaProject", False),
        ("a.pdf", b"%PDF-1.7 vbaProject", False),
    ],
)
def test_macros(name: str, data: bytes, expected: bool) -> None:
    assert macros.look(data, [name], Bounds()).macros is expected


def test_the_compound_files_above_are_such() -> None:
    olefile = pytest.importorskip("olefile")
    with olefile.OleFileIO(io.BytesIO(PROJECT)) as file:
        assert sorted("/".join(one) for one in file.listdir(storages=True)) == [
            "PROJECT", "VBA", "VBA/_VBA_PROJECT", "VBA/dir",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.pdf", b"%PDF-1.7\n1 0 obj <<>> endobj\ntrailer\n<< /Size 9 /Encrypt 8 0 R >>\n", "pdf"),
        ("a.pdf", b"%PDF-1.7\n1 0 obj <<>> endobj\ntrailer\n<< /Size 9 /Root 8 0 R >>\n", ""),
        ("a.docx", packed.ole("EncryptionInfo", "EncryptedPackage"), "office"),
        ("a.doc", packed.ole("WordDocument", held={"WordDocument": b"\xec\xa5\xc1\x00" + bytes(6) + b"\x00\x01"}), "office"),
        ("a.doc", packed.ole("WordDocument", held={"WordDocument": b"\xec\xa5\xc1\x00" + bytes(6) + b"\x00\x00"}), ""),
        ("a.xls", workbook((0x2F, bytes(54))), "office"),
        ("a.xls", workbook(sheet(0)), ""),
        (
            "a.odt",
            zipped(
                ("mimetype", b"application/vnd.oasis.opendocument.text"),
                ("META-INF/manifest.xml", b"<manifest:encryption-data/>"),
            ),
            "office",
        ),
    ],
)  # fmt: skip
def test_passwords(name: str, data: bytes, expected: str) -> None:
    assert macros.look(data, [name], Bounds()).encrypted == expected


def attached(name: str, data: bytes) -> bytes:
    head = f'MIME-Version: 1.0\nContent-Type: application/octet-stream; name="{name}"\n\n'
    return head.encode() + data


def test_files_say_it() -> None:
    [file] = attachments.read([attached("a.doc", packed.ole("VBA/"))]).files
    assert file.macros
    read = attachments.read([attached("a.zip", zipped(("b/c.docx", packed.ole("EncryptedPackage"))))])
    assert [(one.path, one.encrypted, one.macros) for one in read.files] == [
        ("", False, False),
        ("b/c.docx", True, False),
    ]
    assert read.encrypted == {"office"}


def test_oletools_knows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("oletools")
    hidden = zipped(types(), BODY, ("word/vbaProject.bin", PROJECT))
    monkeypatch.setattr(macros, "_package", lambda *_: macros.Look())  # as if we saw nothing
    clean = zipped(types(), BODY)
    both = zipped(("a.docx", clean), ("b.docx", hidden), ("c.docx", clean))
    read = attachments.read([attached("a.zip", both)])
    assert [(one.path, one.macros) for one in read.files[1:]] == [
        ("a.docx", False),
        ("b.docx", True),
        ("c.docx", False),
    ]
    assert read.untold == ""


def test_what_oletools_cannot_tell_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("oletools")
    monkeypatch.setattr(macros, "_SECONDS", 0.0)
    monkeypatch.setattr(macros, "_LEAST", 0.0)
    read = attachments.read([attached("a.doc", PLAIN)])
    assert "oletools cannot tell" in read.untold
    assert read.unread == ""


def test_without_oletools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(macros, "_is_oletools_there", lambda: False)
    monkeypatch.setattr(macros, "ask", lambda *_: pytest.fail("it was asked"))
    assert attachments.read([attached("a.doc", PLAIN)]).untold == ""


def test_damage_raises_nothing() -> None:
    for data in (PROJECT, workbook(sheet(1)), zipped(types(), BODY, ("word/vbaProject.bin", PROJECT))):
        for at in range(0, len(data), 61):
            damaged = bytearray(data)
            damaged[at] ^= 0xFF
            macros.look(bytes(damaged), ["a.docx"], Bounds())
            macros.look(data[:at], ["a.docx"], Bounds())


def test_real_documents_without_macros() -> None:
    """rspamd's test of types has three of Microsoft's first formats and three of its second, all of them empty."""
    raw = (corpora.needs("spam-rspamd") / "gargantua.eml").read_bytes()
    found = attachments.read([raw])
    documents = [one for one in found.files if one.detected == "application/x-ole-storage" or "office" in one.detected]
    assert len(documents) >= 5
    assert not any(one.macros or one.encrypted for one in documents)
