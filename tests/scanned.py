"""Messages for scanners: clean, spam and infected ones, and a message in memory as scanners see it."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from deliver.values import Envelope

ENVELOPE = Envelope("a@example.com", "b@example.com", "/nowhere/Maildir")

# In two pieces each, so that no scanner takes this file for what it tests: https://www.eicar.org/download-anti-malware-
# testfile/ and https://spamassassin.apache.org/gtube/
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

HEADER = b"""\
Return-Path: <a@example.com>
Received: from mail.example.com (mail.example.com [192.0.2.1]) by mx.example.org; Sun, 22 Nov 2026 10:00:01 +0000
From: Ann <a@example.com>
To: Bob <b@example.com>
Subject: Minutes of the meeting
Date: Sun, 22 Nov 2026 10:00:00 +0000
Message-ID: <20261122100000.12345.meeting@example.com>
"""
HAM = HEADER + b"\nDear Bob,\n\nhere are the minutes of the meeting, as promised.\n\nAnn\n"
SPAM = HEADER + b"\n" + GTUBE + b"\n"


class InMemory(NamedTuple):
    """A message as scanners see it (values.Content), cut into ``pieces``."""

    pieces: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes in all chunks."""
        return sum(map(len, self.pieces))

    def chunks(self) -> Iterator[bytes]:
        """The bytes."""
        return iter(self.pieces)

    def digest(self) -> str:
        """What tells it from other messages."""
        return hashlib.sha256(b"".join(self.pieces)).hexdigest()

    def fields(self, _name: str) -> list[bytes]:
        """No scanner asks for these."""
        raise RuntimeError("not for scanners")


def content(message: bytes) -> InMemory:
    """A message of one piece."""
    return InMemory((message,))


def with_attachment(data: bytes, name: str) -> bytes:
    """A MIME message with ``data`` as a base64 attachment (RFC 2045 section 6.8)."""
    return (
        HEADER
        + b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="=_b"\n\n'
        + b"--=_b\nContent-Type: text/plain\n\nSee the attachment.\n"
        + f"--=_b\nContent-Type: application/octet-stream\nContent-Disposition: attachment; filename={name}\n".encode()
        + b"Content-Transfer-Encoding: base64\n\n"
        + base64.encodebytes(data)
        + b"--=_b--\n"
    )


def zipped(name: str, data: bytes) -> bytes:
    """A deflated archive of one file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return archive.getvalue()
