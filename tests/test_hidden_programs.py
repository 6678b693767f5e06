"""A program that the default [attachments] forbids, written so that a filter may not see what a mail program shows."""

import asyncio
import base64
import binascii
import io
import struct
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import servers
from scanned import ENVELOPE, HEADER, content, zipped

from deliver.content.attachments import base_name
from deliver.scanners.attachments import Attached
from deliver.settings import Attachments

PROGRAM = b"MZ\x90\x00" + bytes(range(256))
DEFAULT = Attachments()
OCTETS = b"application/octet-stream"


def judged(raw: bytes) -> set[tuple[str, str]]:
    scanner = Attached(DEFAULT.forbidden, DEFAULT.tricks, DEFAULT.types)
    return {tuple(one) for one in asyncio.run(scanner.scan(content(raw), ENVELOPE)).objections}  # type: ignore[misc]


def mixed(*parts: bytes, before: bytes = b"", behind: bytes = b"", boundary: bytes = b"b") -> bytes:
    line = b"--" + boundary
    text = b"Content-Type: text/plain\n\nhello\n"
    head = HEADER + b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="' + boundary + b'"\n\n' + before
    return head + b"".join(line + b"\n" + one + b"\n" for one in (text, *parts)) + line + b"--\n" + behind


def part(disposition: bytes, kind: bytes = OCTETS, data: bytes = PROGRAM) -> bytes:
    head = b"Content-Type: " + kind + b"\nContent-Disposition: " + disposition
    return head + b"\nContent-Transfer-Encoding: base64\n\n" + base64.encodebytes(data)


def uuencoded(name: bytes, data: bytes) -> bytes:
    lines = (binascii.b2a_uu(data[at : at + 45]) for at in range(0, len(data), 45))
    return b"begin 644 " + name + b"\n" + b"".join(lines) + b"`\nend\n"


def in_uuencode(disposition: bytes, kind: bytes, inner: bytes) -> bytes:
    """A part with the encoding that no RFC has."""
    head = b"Content-Type: " + kind + b"\nContent-Disposition: " + disposition
    return mixed(head + b"\nContent-Transfer-Encoding: x-uuencode\n\n" + inner)


NAMES = {
    # RFC 2231 section 4: %00. headers.decode makes U+FFFD of it; in C a string ends there.
    "a NUL at its end": b"filename*=utf-8''a.exe%00",
    "a NUL and another end": b"filename*=utf-8''a.exe%00.dat",
    # Microsoft, "Naming Files, Paths, and Namespaces": what no file can have in its name, and streams.
    "a stream": b'filename="a.exe::$DATA"',
    "brackets": b'filename="<a.exe>"',
    "quotes": b'filename="\\"a.exe\\""',
    "single quotes": b"filename='a.exe'",
    "a slash at its end": b'filename="a.exe/"',
    "a backslash and a dot": b'filename="a.exe\\\\."',
    "a folded line in it": b'filename="a.\n exe"',
    "a tab in it": b'filename="a.e\txe"',
    # Windows' best-fit tables (bestfit1252.txt) make ASCII of these.
    "what follows a quoted name": b'filename=""a.exe"',
    "a version of a CD": b'filename="a.exe;1"',
    "each letter behind a backslash": b'filename="\\a\\.\\e\\x\\e"',  # RFC 2045 section 5.1, RFC 822 section 3.3
    "a comment behind the sign": b'filename = (w) "a.exe"',
    "an encoded word around all of it": b"=?utf-8?Q?filename=3Da.exe?=",
    "what Windows forbids": b'filename="a.e|xe?"',
    "a NUL in its end": b"filename*=utf-8''a.e%00xe",
    "wide letters": 'filename="a.\uff45\uff58\uff45"'.encode(),
    "a wide dot": 'filename="a\uff0eexe"'.encode(),
    "a blank of no width": 'filename="a.e\u200bxe"'.encode(),
    "a soft hyphen": 'filename="a.exe\u00ad"'.encode(),
    # How programs read a parameter that RFC 2045 section 5.1 does not know.
    "a comment behind it": b"filename=a.exe (setup)",
    "a comment before the sign": b'filename(x)="a.exe"',
    "a word before it": b'x filename="a.exe"',
    "a quote that ends nowhere": b'x="; filename="a.exe"',
    "a quote that is no escape": b'x="\\"; filename="a.exe"',
    "a semicolon and no end": b'filename="a;b.exe',
    "a blank and more": b"filename=a.exe for you",
    # RFC 2047 section 5 forbids both; programs write and read them.
    "an encoded word, encoded": b"filename*=utf-8''=?utf-8?q?a=2Eexe?=",
    "an encoded word in pieces": b'filename*0="=?utf-8?q?a="; filename*1="2Eexe?="',
}


@pytest.mark.parametrize("how", NAMES)
def test_a_name_that_programs_read_in_another_way(how: str) -> None:
    said = judged(mixed(part(b"attachment; " + NAMES[how])))
    assert "forbidden" in {kind for kind, _ in said}


@pytest.mark.parametrize(
    "name",
    [
        "my file.pdf",
        "Re: setup.pdf",
        "it's <here>.txt",
        "r\u00e9sum\u00e9.doc",
        "a\ufffdb.pdf",
        "\uff21\uff22.pdf",
        "exe",
    ],
)
def test_names_that_are_only_odd_pass(name: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    assert judged(mixed(part(f"attachment; filename*=utf-8''{encoded}".encode(), data=b"hello"))) == set()
    assert judged(mixed(part(f'attachment; filename="{name}"'.encode(), data=b"hello"))) == set()


def message(inner: bytes) -> bytes:
    return HEADER + b"MIME-Version: 1.0\n" + inner


# The first bytes of a program, written by Perl's Convert::BinHex 1.125.
BINHEX = b"""(This file must be converted with BinHex 4.0)
:"@%ZCAKP!%&38%`r2cmr!!!!!!"!!!!!!`JY69U3!!!!!3)$"!8'"`J*#JX-$3i
2%"%5%a39&KFB'4SE("dH(b!K)L-N*5BR+#NU+b`Y,Lm`-6)c0$8f0cJj1MXPAR*
PF`a$:
"""

EXE = b'attachment; filename="a.exe"'
LETTER = mixed(part(EXE), boundary=b"inner")

WAYS = {
    "a zip in uuencode": in_uuencode(b"attachment; filename=a.zip", OCTETS, uuencoded(b"x", zipped("a.exe", PROGRAM))),
    "its name in uuencode": in_uuencode(b"attachment", OCTETS, uuencoded(b"a.exe", PROGRAM)),
    "uuencode with more blanks": HEADER + b"\n" + uuencoded(b"a.exe", PROGRAM).replace(b"begin 644", b"begin  64 "),
    "no name and a program's type": mixed(part(b"attachment", b"application/x-msdownload")),
    "no name and a zip's type": mixed(part(b"attachment", b"application/zip", b"xyz" + zipped("a.exe", PROGRAM))),
    "an empty line before a message": mixed(part(b"attachment; filename=a.eml", OCTETS, b"\n\n" + LETTER)),
    "a message for news": mixed(b"Content-Type: message/news\n\n" + LETTER),
    "a message of no registered type": mixed(b"Content-Type: message/x-mail\n\n" + LETTER),
    "empty lines before a message": mixed(b"Content-Type: message/rfc822\n\n\n\n" + LETTER),
    "behind a long text in a message in base64": mixed(
        b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(mixed(b"Content-Type: text/plain\n\n" + b"hello\n" * 20_000, part(EXE), boundary=b"inner"))
    ),
    "uuencode without a mode": HEADER + b"\n" + uuencoded(b"a.exe", PROGRAM).replace(b"begin 644", b"begin "),
    "uuencode with a long mode": HEADER + b"\n" + uuencoded(b"a.exe", PROGRAM).replace(b"644", b"00100644"),
    "uuencode with empty lines": HEADER + b"\n" + uuencoded(b"a.exe", PROGRAM).replace(b"\n", b"\n\n"),
    "uuencode with CR for LF": HEADER + b"\n" + uuencoded(b"a.exe", PROGRAM).replace(b"\n", b"\r"),
    "uuencode in a text that is attached": mixed(
        b"Content-Type: text/plain; name=a.txt\n\nhello\n" + uuencoded(b"a.exe", PROGRAM)
    ),
    "uuencode in HTML": mixed(b"Content-Type: text/html\n\n<pre>\n" + uuencoded(b"a.exe", PROGRAM)),
    "BinHex": HEADER + b"\nhello\n\n" + BINHEX,
    "BinHex that is attached": mixed(part(b"attachment; filename=a", data=BINHEX)),
}


@pytest.mark.parametrize("how", WAYS)
def test_a_file_that_lies_in_another_way(how: str) -> None:
    assert {kind for kind, _ in judged(WAYS[how])} == {"forbidden"}


FIRST, BEHIND = b"--b\nContent-Type: text/plain\n\nhello\n", part(EXE) + b"\n--b--\n"
MIXED = b"Content-Type: multipart/mixed; boundary=b\n\n"
AMBIGUOUS = {
    # RFC 2046 section 5.1.1: a boundary counts whatever follows it.
    "a boundary and more": (MIXED + FIRST + b"--bx\n" + BEHIND, "a line that is nearly a boundary"),
    "a boundary and a control character": (MIXED + FIRST + b"--b\x0b\n" + BEHIND, "a line that is nearly a boundary"),
    "a last boundary and more": (MIXED + b"--b--x\n" + BEHIND, "a line that is nearly a boundary"),
    "a boundary behind a CR": (MIXED + FIRST + b"hello\r--b\r" + BEHIND, "a line that is nearly a boundary"),
    "a boundary behind a NUL": (MIXED + FIRST + b"\0--b\n" + BEHIND, "a line that is nearly a boundary"),
    "a boundary behind a blank": (MIXED + FIRST + b" \t--b\n" + BEHIND, "a line that is nearly a boundary"),
    "a boundary in a text": (
        b"Content-Type: text/plain; boundary=b\n\n" + FIRST + b"--b\n" + BEHIND,
        "a line that is nearly a boundary",
    ),
    "the same piece of a name twice": (
        mixed(part(b'attachment; filename*0="a.txt"; filename*0="a.exe"')).partition(b"MIME-Version: 1.0\n")[2],
        "more than one filename",
    ),
    "a name whole and in pieces": (
        mixed(part(b"attachment; filename*=utf-8''a.txt; filename*0=a.exe")).partition(b"MIME-Version: 1.0\n")[2],
        "more than one filename",
    ),
    "a name with a gap": (
        mixed(part(b'attachment; filename*0="a.exe"; filename*2=".txt"')).partition(b"MIME-Version: 1.0\n")[2],
        "a malformed filename",
    ),
    "a name with a number that is none": (
        mixed(part(b"attachment; filename*0=a; filename*1x=.exe")).partition(b"MIME-Version: 1.0\n")[2],
        "a malformed filename",
    ),
    "fields that begin with a control character": (
        MIXED + FIRST + b"--b\n\x0bContent-Type: application/pdf\n\nhello\n--b--\n",
        "a line in a header that is no field",
    ),
    "padding before more base64": (
        b"Content-Transfer-Encoding: base64\n\nQUJD; x=" + b"QUJD" * 16 + b"\n" + b"QUJD" * 16 + b"\n",
        "base64 behind its end",
    ),
    "a boundary where a header should be": (
        MIXED + FIRST + b"--b\n--b--\n" + BEHIND.removesuffix(b"--b--\n"),
        "a boundary in a header",
    ),
    "padding amid base64": (
        b"Content-Transfer-Encoding: base64\n\n" + b"QUJD" * 10 + b"=?x\n" + b"QUJD" * 10 + b"\n",
        "base64 behind its end",
    ),
    "a type, and one before it that says nothing": (
        b"Content-Type:\nContent-Type: multipart/mixed; boundary=b\n\n" + FIRST + b"--b\n" + BEHIND,
        "more than one Content-Type",
    ),
    "a boundary behind the last": (MIXED + FIRST + b"--b--\n--b\n" + BEHIND, "a line that is nearly a boundary"),
    "a type in quotes": (
        b'Content-Type: "multipart/mixed"; boundary=b\n\n' + FIRST + b"--b\n" + BEHIND,
        "a type that is none, with a boundary",
    ),
    "a type behind a semicolon": (
        b"Content-Type: ; multipart/mixed; boundary=b\n\n" + FIRST + b"--b\n" + BEHIND,
        "a type that is none, with a boundary",
    ),
    "a disposition without a semicolon": (
        MIXED + FIRST + b"--b\n" + part(b"attachment filename*=utf-8''a%2Eexe") + b"\n--b--\n",
        "a disposition that is none, with a name",
    ),
    "a message in uuencode": (
        b"Content-Type: message/rfc822\nContent-Transfer-Encoding: x-uuencode\n\n" + uuencoded(b"x", LETTER),
        "a message in uuencode",
    ),
    "CR for LF in a message in it": (
        b"Content-Type: message/rfc822\n\n" + LETTER.replace(b"\n", b"\r"),
        "CR in a header",
    ),
}


@pytest.mark.parametrize("how", AMBIGUOUS)
def test_a_message_that_programs_read_in_another_way(how: str) -> None:
    inner, reason = AMBIGUOUS[how]
    assert ("ambiguous", reason) in judged(message(inner))


@pytest.mark.parametrize(
    "inner",
    [
        MIXED + FIRST + b"--b--\n--b--\n",  # twice the last: nothing follows
        MIXED + FIRST + b"--b--\n-- \nlist@example.org\n",
        MIXED + b"--b\nContent-Type: multipart/alternative; boundary=bb\n\n--bb\n\nhello\n--bb--\n\n--b--\n",
        MIXED + b"--b\n\nhe wrote:\n> --b\n--c\n--b--\n",
        b"Content-Type: text/html; boundary=b\n\n<p>a boundary that is nowhere</p>\n",
        *(
            b"Content-Transfer-Encoding: base64\n\n" + base64.encodebytes(b"hello " * size) + footer
            for size in (40, 41, 42)
            for footer in (
                b"\n-- \nTo unsubscribe, https://groups.example.org/d/optout?x=1&y=abc\n",
                b"\nmailto:list@example.org?subject=unsubscribe\n",
                b"==================\nCONFIDENTIAL\n==================\n",
                b"== Footer ==\nList = Test\n",
            )
        ),
    ],
    ids=range(17),
)
def test_lines_that_look_like_boundaries_and_are_none(inner: bytes) -> None:
    assert judged(message(inner)) == set()


def test_hundreds_of_boundaries_cost_little() -> None:
    parts = [
        b"Content-Type: multipart/mixed; boundary=%s%d\n\n--%s%d\n\nx\n--%s%d--\n" % ((b"z" * 60, number) * 3)
        for number in range(499)
    ]
    raw = mixed(*parts, b"\n" + b"--\n" * 300_000)
    begun = time.process_time()
    assert judged(raw) == set()
    assert time.process_time() - begun < 3


def test_a_long_name_costs_little() -> None:
    for path in ("a" * 1_000_000 + "/b.exe", "a" * 1_000_000 + "/"):
        begun = time.process_time()
        base_name(path)
        assert time.process_time() - begun < 0.5
    begun = time.process_time()
    judged(mixed(part(b'attachment; filename="' + b"a" * 60_000 + b'/b.pdf"')))
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("option", [[], ["-stream", "-indef"]], ids=["definite", "indefinite"])
def test_a_message_that_is_signed_in_one_piece(option: list[str], tmp_path: Path) -> None:
    """RFC 8551 section 3.5.2, as openssl writes it: in one piece, or in many of a length that is not said."""
    openssl = servers.needs("openssl")
    (tmp_path / "in").write_bytes(LETTER.partition(b"MIME-Version: 1.0\n")[2] + b"\n" * 10_000)

    def run(*arguments: str) -> bytes:
        return subprocess.run([openssl, *arguments], cwd=tmp_path, capture_output=True, check=True).stdout

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", "-out", "c", "-subj", "/CN=x")
    sign = ("smime", "-sign", "-binary", "-in", "in", "-signer", "c", "-inkey", "k", "-outform", "DER")
    whole = run(*sign, "-nodetach", *option)
    kind = b"application/pkcs7-mime; smime-type=signed-data; name=smime.p7m"
    raw = HEADER + b"MIME-Version: 1.0\n" + part(b"attachment; filename=smime.p7m", kind, whole)
    assert judged(raw) == {("forbidden", "a.exe")}
    assert judged(mixed(part(b"attachment; filename=x.bin", OCTETS, whole))) == {("forbidden", "a.exe")}
    alone = part(b"attachment; filename=smime.p7s", b"application/pkcs7-signature", run(*sign))
    assert judged(mixed(alone)) == set()
    for cut in range(0, len(whole), 997):
        judged(mixed(part(b"attachment; filename=smime.p7m", kind, whole[:cut])))


def test_the_other_name_in_a_zip() -> None:
    """APPNOTE.TXT section 4.6.9: the field of Info-ZIP with the name in Unicode."""
    field = b"\x01" + struct.pack("<I", zlib.crc32(b"a.dat")) + b"a.exe"
    entry = zipfile.ZipInfo("a.dat")
    entry.extra = struct.pack("<HH", 0x7075, len(field)) + field
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(entry, PROGRAM)
    raw = written.getvalue()
    directory = raw.index(b"PK\x01\x02")
    for data in (
        raw,
        raw[:directory].replace(b"a.exe", b"a.dat") + raw[directory:],
        raw[:directory] + raw[directory:].replace(b"a.exe", b"a.dat"),
    ):
        assert judged(mixed(part(b"attachment; filename=a.zip", data=data))) == {("forbidden", "a.exe")}


@pytest.mark.parametrize("data", [b"conectix" + bytes(600), b"(This file must be converted with BinHex 4.0)\n:"])
def test_what_nothing_here_opens_is_said(data: bytes) -> None:
    assert {kind for kind, _ in judged(mixed(part(b"attachment; filename=a.bin", data=data)))} == {"too-big"}
