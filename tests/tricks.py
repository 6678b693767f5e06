"""Ways to hide a file in a message from scanners, each in a message of its own; made for these tests.

Some are known from filters that fell for them, some are plain encodings that a filter may not know. A mail program would
show the file in most of them.
"""

import base64
import binascii
import bz2
import gzip
import io
import lzma
import quopri
import tarfile
import zipfile

from scanned import HEADER, zipped

HEAD = HEADER + b"MIME-Version: 1.0\n"
TEXT = b"Content-Type: text/plain\n\nSee the attachment.\n"


def mixed(part: bytes, boundary: bytes = b"b", field: bytes = b"") -> bytes:
    """A multipart of a text and this part, under ``field`` or an ordinary Content-Type."""
    field = field or b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\n'
    return (
        HEAD
        + field
        + b"\n--"
        + boundary
        + b"\n"
        + TEXT
        + b"--"
        + boundary
        + b"\n"
        + part
        + b"\n--"
        + boundary
        + b"--\n"
    )


def part(
    data: bytes, encoding: bytes = b"", kind: bytes = b"application/octet-stream", name: bytes = b"a.bin"
) -> bytes:
    """One part; ``data`` is encoded already."""
    header = b"Content-Type: " + kind + b"\nContent-Disposition: attachment; filename=" + name + b"\n"
    return header + (b"Content-Transfer-Encoding: " + encoding + b"\n" if encoding else b"") + b"\n" + data


def packed(data: bytes, name: bytes = b"a.bin", kind: bytes = b"application/octet-stream") -> bytes:
    """A message with ``data`` in base64."""
    return mixed(part(base64.encodebytes(data), b"base64", kind, name))


def tarred(name: str, data: bytes, mode: str = "w") -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as file:  # type: ignore[call-overload]
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


def uuencoded(data: bytes) -> bytes:
    lines = [binascii.b2a_uu(data[at : at + 45]) for at in range(0, len(data), 45)]
    return b"begin 644 a.com\n" + b"".join(lines) + b"`\nend\n"


def yencoded(data: bytes) -> bytes:
    """http://www.yenc.org/yenc-draft.1.3.txt"""
    escaped = b"".join(
        b"=" + bytes([(byte + 106) % 256]) if (byte + 42) % 256 in (0, 10, 13, 61) else bytes([(byte + 42) % 256])
        for byte in data
    )
    return b"=ybegin line=128 size=%d name=a.com\n" % len(data) + escaped + b"\n=yend size=%d\n" % len(data)


def nested(data: bytes, depth: int) -> bytes:
    """Multiparts in each other."""
    inner = part(base64.encodebytes(data), b"base64")
    for level in range(depth):
        boundary = b"level%d" % level
        inner = b"Content-Type: multipart/mixed; boundary=" + boundary + b"\n\n--" + boundary + b"\n" + inner
        inner += b"\n--" + boundary + b"--\n"
    return HEAD + inner


def enclosed(data: bytes, depth: int) -> bytes:
    """Messages in each other."""
    message = packed(data)
    for _ in range(depth):
        message = mixed(b"Content-Type: message/rfc822\n\n" + message, b"outer%d" % len(message))
    return message


def zip_that_lies(data: bytes) -> bytes:
    """Its central directory, which most programs believe, knows one name, the header before the file another."""
    raw = zipped("abc.com", data)
    at = raw.index(b"PK\x01\x02")
    return raw[:at] + raw[at:].replace(b"abc.com", b"abc.txt")


def tricks(data: bytes) -> dict[str, bytes]:
    """The messages by what they do."""
    plain = base64.encodebytes(data)
    one = base64.b64encode(data)
    folder = zipped("a.com", data)
    quoted = quopri.encodestring(data)
    two_ways = part(plain, b"base64")
    return {
        "base64": mixed(two_ways),
        "quoted-printable": mixed(part(quoted, b"quoted-printable")),
        "8bit": mixed(part(data, b"8bit")),
        "text, not attached": HEADER + b"\n" + data + b"\n",
        "quoted-printable, every byte": mixed(part(b"".join(b"=%02x=\n" % byte for byte in data), b"quoted-printable")),
        "base64 with other characters": mixed(
            part(b"!".join(one[at : at + 3] for at in range(0, len(one), 3)), b"base64")
        ),
        "base64 with NUL": mixed(part(b"\0".join(one[at : at + 4] for at in range(0, len(one), 4)), b"base64")),
        "base64, padded in the middle": mixed(
            part(base64.b64encode(data[:1]) + base64.b64encode(data[1:20]) + base64.b64encode(data[20:]), b"base64")
        ),
        "base64, padded line by line": mixed(
            part(b"\n".join(base64.b64encode(data[at : at + 10]) for at in range(0, len(data), 10)), b"base64")
        ),
        "base64, one letter a line": mixed(part(b"\n".join(bytes([byte]) for byte in one), b"base64")),
        "base64 in one line of 40 KB": packed_in_one_line(data),
        "base64 with blanks before each line": mixed(part(plain.replace(b"\n", b"\n \t"), b"base64")),
        "base64 with CR for LF": mixed(part(plain.replace(b"\n", b"\r"), b"base64")),
        "base64 without its end": mixed(part(one.rstrip(b"="), b"base64")).replace(b"--b--", b""),
        "base64 with a list's footer": mixed(part(plain + b"____\nlist@example.org\n", b"base64")),
        "uuencode in a text": HEADER + b"\nSee below.\n\n" + uuencoded(data),
        "uuencode as an encoding": mixed(part(uuencoded(data), b"x-uuencode")),
        "uuencode behind the last boundary": mixed(TEXT) + uuencoded(data),
        "yEnc": HEADER + b"\n" + yencoded(data),
        "encoding named twice, first right": mixed(part(plain, b"base64\nContent-Transfer-Encoding: 7bit")),
        "encoding named twice, last right": mixed(part(plain, b"7bit\nContent-Transfer-Encoding: base64")),
        "encoding with a comment": mixed(part(plain, b"(7bit) BaSe64 (really)")),
        "encoding in quotes": mixed(part(plain, b'"base64"')),
        "encoding with a semicolon": mixed(part(plain, b"base64; x=y")),
        "encoding in a folded line": mixed(part(plain, b"\n\tbase64")),
        "a blank before the colon": mixed(
            part(plain, b"base64").replace(b"Content-Transfer-Encoding:", b"Content-Transfer-Encoding :")
        ),
        "a comment in a field's name": mixed(
            part(plain, b"base64").replace(b"Content-Transfer-Encoding:", b"Content-Transfer-Encoding(x):")
        ),
        "two boundaries, first right": mixed(
            two_ways, field=b"Content-Type: multipart/mixed; boundary=b; boundary=c\n"
        ),
        "two boundaries, last right": mixed(two_ways, field=b"Content-Type: multipart/mixed; boundary=c; boundary=b\n"),
        "two types, first right": mixed(
            two_ways, field=b"Content-Type: multipart/mixed; boundary=b\nContent-Type: text/plain\n"
        ),
        "two types, last right": mixed(
            two_ways, field=b"Content-Type: text/plain\nContent-Type: multipart/mixed; boundary=b\n"
        ),
        "a boundary in pieces": mixed(
            two_ways, b"bc", b'Content-Type: multipart/mixed; boundary*0="b"; boundary*1="c"\n'
        ),
        "a boundary in percent signs": mixed(
            two_ways, b"bc", b"Content-Type: multipart/mixed; boundary*=us-ascii''%62%63\n"
        ),
        "a boundary in a comment": mixed(two_ways, field=b"Content-Type: multipart/mixed; (boundary=c) boundary=b\n"),
        "no boundary named": mixed(two_ways, field=b"Content-Type: multipart/mixed\n"),
        "blanks behind boundaries": mixed(two_ways).replace(b"\n--b\n", b"\n--b \t \n"),
        "no last boundary": mixed(two_ways).replace(b"--b--\n", b""),
        "the outer boundary ends the inner": mixed(
            b"Content-Type: multipart/mixed; boundary=inner\n\n--inner\n" + two_ways
        ),
        "CRLF and LF mixed": mixed(two_ways).replace(b"\n--b", b"\r\n--b").replace(b"base64\n\n", b"base64\r\n\n"),
        "an encoded multipart": HEAD
        + b"Content-Type: multipart/mixed; boundary=b\nContent-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(mixed(two_ways).partition(b"\n\n")[2]),
        "multiparts 4 deep": nested(data, 4),
        "multiparts 18 deep": nested(data, 18),
        "messages 3 deep": enclosed(data, 3),
        "messages 12 deep": enclosed(data, 12),
        "a message in base64": mixed(
            b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + base64.encodebytes(packed(data))
        ),
        "a digest": HEAD + b"Content-Type: multipart/digest; boundary=d\n\n--d\n\n" + packed(data) + b"\n--d--\n",
        "an image by its type": packed(data, b"a.png", b"image/png"),
        "a text in a charset that is none": packed(data, b"a.txt", b"text/plain; charset=x-none"),
        "a text that says UTF-16": packed(data, b"a.txt", b"text/plain; charset=utf-16"),
        "zip": packed(folder, b"a.zip"),
        "zip in zip in zip": packed(zipped("c.zip", zipped("b.zip", folder)), b"a.zip"),
        "zip as an image": packed(folder, b"a.png", b"image/png"),
        "zip behind a text": packed(b"hello\n" * 500 + folder, b"a.zip"),
        "zip without its end": packed(folder[: folder.index(b"PK\x01\x02")], b"a.zip"),
        "zip that lies of its names": packed(zip_that_lies(data), b"a.zip"),
        "zip, stored, with other characters": mixed(
            part(b"\n!".join(base64.encodebytes(stored(data)).split(b"\n")), b"base64", name=b"a.zip")
        ),
        "tar.gz": packed(tarred("a.com", data, "w:gz"), b"a.tar.gz"),
        "zip in tar.gz": packed(tarred("a.zip", folder, "w:gz"), b"a.tar.gz"),
        "tar.bz2": packed(tarred("a.com", data, "w:bz2"), b"a.tar.bz2"),
        "tar.xz": packed(tarred("a.com", data, "w:xz"), b"a.tar.xz"),
        "gzip without its end": packed(gzip.compress(data + b"\n" + bytes(range(256)) * 40)[:-20], b"a.gz"),
        "bzip2": packed(bz2.compress(data), b"a.bz2"),
        "lzma": packed(lzma.compress(data, lzma.FORMAT_ALONE), b"a.lzma"),
        "zip, quoted-printable": mixed(part(quopri.encodestring(folder), b"quoted-printable", name=b"a.zip")),
    }


def stored(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("a.com", data)
    return archive.getvalue()


def packed_in_one_line(data: bytes) -> bytes:
    return mixed(part(base64.b64encode(b" " * 30_000 + data), b"base64"))
