"""Files written into a text, as before MIME: uuencode(5), yEnc and BinHex. Old mail programs show these as attached."""

import binascii
import re
from collections.abc import Iterator

from deliver.content.bounds import Bounds

# POSIX uuencode: a mode and a name; programs that read it take more blanks, other modes, and some none. The draft of
# yEnc (http://www.yenc.org/yenc-draft.1.3.txt): the name stands last. RFC 1741 appendix A: BinHex's stands inside.
_BEGINS = re.compile(
    rb"(?m)^(?:begin(?P<base64>-base64)?[ \t]+(?:[0-9]+[ \t]+)?(?P<uu>[^\n]+)"
    rb"|=ybegin [^\n]*\bname=(?P<yenc>[^\n]+)"
    rb"|(?P<binhex>\(This file must be converted with BinHex)[^\n]*)\n"
)
_YENC_END = re.compile(rb"(?m)^=yend\b")
_YENC_PART = re.compile(rb"=ypart [^\n]*\n")
_BASE64_END = re.compile(rb"(?m)^====$")
_ESCAPED = re.compile(rb"=(.)", re.DOTALL)
_PIECE = 64 * 1024  # bytes
_MINUS_42 = bytes((value - 42) % 256 for value in range(256))
_BINHEX = re.compile(rb"\s*:([^:]*)")
_BINHEX_LETTERS = b"!\"#$%&'()*+,-012345689@ABCDEFGHIJKLMNPQRSTUVXYZ[`abcdefhijklmpqr"
_BASE64_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_BASE64 = bytes.maketrans(_BINHEX_LETTERS, _BASE64_LETTERS)
_NOT_BINHEX = bytes(set(range(256)) - set(_BINHEX_LETTERS))
_REPEAT = b"\x90"
_BINHEX_CAP = 32 * 1024 * 1024  # bytes


def files(text: bytes, bounds: Bounds) -> Iterator[tuple[str, bytes]]:
    """The name and what is in each file. Never raises."""
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    at = 0
    while (found := _BEGINS.search(text, at)) and not bounds.late():
        at = found.end()
        name = (found["uu"] or found["yenc"] or b"").decode("utf-8", "replace").strip()
        if found["yenc"]:
            content, at = _yenc(text, at, bounds)
        elif found["binhex"]:
            name, content, at = _binhex(text, at, bounds)
        elif found["base64"]:
            end = _BASE64_END.search(text, at)
            content, at = _base64(text[at : end.start() if end else len(text)]), end.end() if end else len(text)
        else:
            content, at = _uu(text, at, bounds)
        if content:
            yield name, content


def _uu(text: bytes, at: int, bounds: Bounds) -> tuple[bytes, int]:
    """Lines that begin with how many bytes they hold; and where they end.

    What is no such line is passed over, as programs do: up to the last line, the next file or the end of the text.
    """
    content = bytearray()
    while at < len(text) and not bounds.late():
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end]
        if line.startswith((b"end", b"begin", b"`")):
            break
        size = (line[0] - 32) & 63 if line else 0
        letters = 4 * ((size + 2) // 3)
        try:
            if size and 32 <= line[0] <= 96 and len(line) - 1 >= letters - 2:
                # Mailers cut blanks off, and some encoders put a sum or a letter behind.
                content += binascii.a2b_uu(line[: letters + 1])
            elif line and not content:
                break
        except binascii.Error:
            if not content:
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


def _binhex(text: bytes, at: int, bounds: Bounds) -> tuple[str, bytes, int]:
    """RFC 1741 appendix A: the name, the file with its resources behind it, and where that ends."""
    found = _BINHEX.match(text, at)
    if not found:
        return "", b"", at
    letters = found[1].translate(_TO_BASE64, _NOT_BINHEX)
    letters = letters[: len(letters) - (len(letters) % 4 == 1)]
    packed = binascii.a2b_base64(letters + b"=" * (-len(letters) % 4))
    data = bytearray()
    start = 0
    most = min(bounds.bytes, _BINHEX_CAP)
    while start < len(packed) and len(data) < most and not bounds.late():
        mark = packed.find(_REPEAT, start)
        mark = len(packed) if mark < 0 else mark
        data += packed[start:mark]
        times = packed[mark + 1] if mark + 1 < len(packed) else 1
        # The byte before is there once already; no times at all stand for the mark itself.
        data += data[-1:] * (times - 1) if times else _REPEAT
        start = mark + 2
    bounds.take(len(data))
    if start < len(packed):
        bounds.exceed("archives hold too much")
    length = data[0] if data else 0
    # Behind the name: a NUL, type, creator and flags (10 bytes), two sizes of 4 and a sum of 2.
    return data[1 : 1 + length].decode("mac_roman"), bytes(memoryview(data)[length + 22 :]), found.end()
