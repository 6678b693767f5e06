"""Files written into a text, as before MIME: uuencode(5) and yEnc. Old mail programs show these as attached."""

import binascii
import re
from collections.abc import Iterator

from deliver.bounds import Bounds

# POSIX uuencode: a mode and a name; programs that read it take more blanks and other modes. The draft of yEnc
# (http://www.yenc.org/yenc-draft.1.3.txt): the name stands last.
_BEGINS = re.compile(
    rb"(?m)^(?:begin(?P<base64>-base64)?[ \t]+[0-7]{1,6}[ \t]+(?P<uu>[^\r\n]+)"
    rb"|=ybegin [^\r\n]*\bname=(?P<yenc>[^\r\n]+))\r?\n"
)
_YENC_END = re.compile(rb"(?m)^=yend\b")
_YENC_PART = re.compile(rb"=ypart [^\r\n]*\r?\n")
_BASE64_END = re.compile(rb"(?m)^====\r?$")
_ESCAPED = re.compile(rb"=(.)", re.DOTALL)
_PIECE = 64 * 1024  # bytes
_MINUS_42 = bytes((value - 42) % 256 for value in range(256))


def files(text: bytes, bounds: Bounds) -> Iterator[tuple[str, bytes]]:
    """The name and what is in each file. Never raises."""
    at = 0
    while (found := _BEGINS.search(text, at)) and not bounds.late():
        at = found.end()
        name = (found["uu"] or found["yenc"]).decode("utf-8", "replace").strip()
        if found["yenc"]:
            content, at = _yenc(text, at, bounds)
        elif found["base64"]:
            end = _BASE64_END.search(text, at)
            content, at = _base64(text[at : end.start() if end else len(text)]), end.end() if end else len(text)
        else:
            content, at = _uu(text, at, bounds)
        if content:
            yield name, content


def _uu(text: bytes, at: int, bounds: Bounds) -> tuple[bytes, int]:
    """Lines that begin with how many bytes they hold, up to one that is no such line; and where that is."""
    content = bytearray()
    while at < len(text) and not bounds.late():
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end].rstrip(b"\r")
        size = (line[0] - 32) & 63 if line else 0
        letters = 4 * ((size + 2) // 3)
        if not size or not 32 <= line[0] <= 96 or len(line) - 1 < letters - 2:
            break
        try:
            # Mailers cut blanks off, and some encoders put a sum or a letter behind.
            content += binascii.a2b_uu(line[: letters + 1])
        except binascii.Error:
            break
        at = end + 1
    return bytes(content), at


def _base64(raw: bytes) -> bytes:
    try:
        return binascii.a2b_base64(raw)
    except binascii.Error:
        return b""


def _yenc(text: bytes, at: int, bounds: Bounds) -> tuple[bytes, int]:
    part = _YENC_PART.match(text, at)
    at = part.end() if part else at
    end = _YENC_END.search(text, at)
    stop = end.start() if end else len(text)
    raw = text[at:stop].translate(None, b"\r\n")
    content = bytearray()
    start = 0
    # In pieces: what is replaced takes a hundred times its size meanwhile, and a stranger may escape every byte.
    while start < len(raw) and not bounds.late():
        piece = raw[start : start + _PIECE]
        if (len(piece) - len(piece.rstrip(b"="))) % 2:
            piece = raw[start : start + _PIECE + 1]  # not between an escape and what it escapes
        start += len(piece)
        content += _ESCAPED.sub(lambda found: bytes([(found[1][0] - 64) % 256]), piece).translate(_MINUS_42)
    return bytes(content), stop
