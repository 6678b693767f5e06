"""Letters of our own making: replies, notices, digests. Header and encoding, in ASCII whatever the text."""

import binascii
import os
import time

from deliver import header_lines

_LONGEST_LINE = 76
"""Characters of a line that goes out as it stands; longer ones, and what is not ASCII, are quoted-printable."""


def dated(now: float, domain: str) -> bytes:
    """The lines Date and Message-ID (RFC 5322 sections 3.6.1 and 3.6.4); ``now`` in seconds since the epoch."""
    when = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(now))
    unique = f"{now:.6f}.{os.getpid()}.{os.urandom(8).hex()}"
    return header_lines.field("Date", when) + header_lines.field("Message-ID", f"<{unique}@{domain}>")


def encoded(kind: str, text: str) -> bytes:
    """A MIME part (RFC 2045): its Content lines, an empty line and the text. ``kind`` is as "text/plain"."""
    text = text.rstrip("\n") + "\n"
    if text.isascii() and max(map(len, text.split("\n"))) <= _LONGEST_LINE:
        head = f"Content-Type: {kind}; charset=us-ascii\nContent-Transfer-Encoding: 7bit\n\n"
        return head.encode() + text.encode()
    head = f"Content-Type: {kind}; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n"
    return head.encode() + binascii.b2a_qp(text.encode("utf-8", "replace"), istext=True)


def letter(sender: str, to: str, subject: str, text: str, html: str, now: float, more: bytes = b"") -> bytes:
    """A letter in two forms, of which mail programs show one (RFC 2046 section 5.1.4).

    ``more`` are further header lines. It is for a null envelope sender (RFC 3834 section 3.3).
    """
    boundary = f"=_{os.urandom(16).hex()}"  # "=_" stands in no quoted-printable text (RFC 2045 section 6.7)
    parts = (encoded("text/plain", text), encoded("text/html", html))
    return b"".join(
        (
            header_lines.field("From", f"<{sender}>"),
            header_lines.field("To", f"<{to}>"),
            header_lines.field("Subject", subject[: header_lines.LONGEST_VALUE]),
            dated(now, sender.rpartition("@")[2]),
            more,
            f'MIME-Version: 1.0\nContent-Type: multipart/alternative; boundary="{boundary}"\n'.encode(),
            *(f"\n--{boundary}\n".encode() + part for part in parts),
            f"\n--{boundary}--\n".encode(),
        )
    )
