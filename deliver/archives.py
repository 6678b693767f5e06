"""The files in zip, tar, gzip, bzip2 and xz archives, and in archives in these; within bounds and without raising.

A damaged or forged archive shows different files to different programs: so a zip's central directory counts as well as
the headers before each file, wherever they stand. Nothing is written anywhere.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from deliver.filetypes import detect, extension

DEEPEST = 5
"""Archives in each other."""

MOST_FILES = 10_000
"""Files of all archives of one message."""

UNPACKED_CAP = 32 * 1024 * 1024
"""Bytes that are unpacked for one message, all archives together: a third of a second."""

_ARCHIVES = frozenset(
    "application/zip application/java-archive application/x-tar application/gzip application/x-bzip2 "
    "application/x-xz".split()
)
_DOCUMENTS = frozenset("docx docm dotx dotm xlsx xlsm xltx xlsb pptx pptm potx ppsx odt ods odp odg epub".split())

_LOCAL = b"PK\x03\x04"
_CENTRAL = b"PK\x01\x02"
_ENCRYPTED = 0x01
_UTF8 = 0x800
_BLOCK = 512
_PIECE = 64 * 1024
_HEAD = 1024  # of each file in an archive, to know what it is
_XZ_MEMORY = 32 * 1024 * 1024  # bytes; what `xz -6` makes needs 9 MiB, `xz -9` 65
_PAX_PATH = re.compile(rb"(?:\A|\n)[0-9]+ path=([^\n]*)\n")


class Member(NamedTuple):
    """A file in an archive: its whole ``path`` there, and what its first bytes say it is; "" where unknown."""

    path: str
    detected: str = ""
    encrypted: bool = False


class Bounds:
    """What is left of the limits for one message. ``exceeded`` says which one kept something from being read."""

    def __init__(self) -> None:
        self.files = MOST_FILES
        self.bytes = UNPACKED_CAP
        self.exceeded = ""

    def exceed(self, words: str) -> None:
        """Something was left unread."""
        self.exceeded = self.exceeded or words


def kind_of(head: bytes, names: Iterable[str]) -> str:
    """How to read a file that begins so as an archive; "" if it is none.

    A document that is a zip file is one of these only under another name than a document's, since then programs open
    it as an archive.
    """
    detected = detect(head)
    if detected in _ARCHIVES:
        return detected
    if head.startswith(_LOCAL) and not any(extension(name) in _DOCUMENTS for name in names):
        return "application/zip"
    return ""


def members(data: bytes, kind: str, name: str, bounds: Bounds, depth: int = 1) -> Iterator[Member]:
    """The files in an archive, those of archives in it behind each. ``kind`` is what ``kind_of`` says of it.

    ``name`` is the archive's own: what a gzip file holds is called so, without the ".gz".
    """
    if depth > DEEPEST:
        bounds.exceed("archives lie too deep in each other")
        return
    if kind in {"application/zip", "application/java-archive"}:
        found = _zip(data, bounds)
    elif kind == "application/x-tar":
        found = _tar(data)
    else:
        found = _compressed(data, kind, name, bounds)
    for path, encrypted, content in found:
        if bounds.files <= 0:
            bounds.exceed("archives hold too many files")
            return
        bounds.files -= 1
        if not path or path.endswith("/"):
            continue
        yield Member(path, detect(content[:_HEAD]), encrypted)
        if inner := kind_of(content[:_HEAD], [path]):
            yield from members(content, inner, path, bounds, depth + 1)


_Found = Iterator[tuple[str, bool, bytes]]


def _zip(data: bytes, bounds: Bounds) -> _Found:
    """Every entry that a program could find: APPNOTE.TXT sections 4.3.7 and 4.3.12."""
    seen: set[tuple[str, bool]] = set()
    read: list[tuple[int, int]] = []  # what lies in a file that was read whole is no entry of this archive
    at = data.find(_LOCAL)
    while 0 <= at <= len(data) - 30:
        flags, method, size, length, extra = struct.unpack_from("<6xHH8xI4xHH", data, at)
        start = at + 30 + length + extra
        path = _name(data[at + 30 : at + 30 + length], flags)
        encrypted = bool(flags & _ENCRYPTED)
        seen.add((path, encrypted))
        content, used = (b"", 0) if encrypted else _member(data, start, size, method, path, bounds)
        yield path, encrypted, content
        if used:
            read.append((start, start + used))
        at = data.find(_LOCAL, start + used if used else at + 4)
    at = data.find(_CENTRAL)
    for _ in range(2 * MOST_FILES):
        if not 0 <= at <= len(data) - 46:
            return
        while read and read[0][1] <= at:
            del read[0]
        if read and read[0][0] <= at:
            at = data.find(_CENTRAL, read[0][1])
            continue
        flags, length = struct.unpack_from("<8xH18xH", data, at)
        key = (_name(data[at + 46 : at + 46 + length], flags), bool(flags & _ENCRYPTED))
        if key not in seen:
            seen.add(key)
            yield *key, b""
        at = data.find(_CENTRAL, at + 46)
    bounds.exceed("archives hold too many files")


def _member(data: bytes, start: int, size: int, method: int, path: str, bounds: Bounds) -> tuple[bytes, int]:
    """What one entry holds, only its head where it is no archive; and how many bytes of ``data`` were all of it."""
    import zlib

    if method == 0:
        return data[start : start + size], size if size <= len(data) - start else 0
    if method != 8:
        return b"", 0
    return _unpacked(lambda: zlib.decompressobj(-zlib.MAX_WBITS), memoryview(data)[start:], path, bounds)


def _unpacked(unpacker: Callable[[], Any], packed: memoryview, path: str, bounds: Bounds) -> tuple[bytes, int]:
    """As ``_member``."""
    head, used = _some(unpacker(), packed, _HEAD, bounds)
    return _some(unpacker(), packed, UNPACKED_CAP, bounds) if kind_of(head, [path]) else (head, used)


def _some(unpacking: Any, packed: memoryview, most: int, bounds: Bounds) -> tuple[bytes, int]:
    """At most ``most`` bytes, which count, and what there is of damaged data."""
    import lzma
    import zlib

    content = bytearray()
    left = min(most, bounds.bytes)
    used = 0
    try:
        for at in range(0, len(packed), _PIECE):
            if len(content) >= left or unpacking.eof:
                break
            piece = packed[at : at + _PIECE]
            content += unpacking.decompress(piece, left - len(content))
            used = at + len(piece) - len(unpacking.unused_data)
    except (zlib.error, OSError, ValueError):
        pass
    except (lzma.LZMAError, MemoryError) as error:
        bounds.exceed(f"an archive cannot be unpacked: {error}")
    bounds.bytes -= len(content)
    if bounds.bytes <= 0:
        bounds.exceed("archives hold too much")
    return bytes(content), used if unpacking.eof else 0


def _compressed(data: bytes, kind: str, name: str, bounds: Bounds) -> _Found:
    """The one file in what gzip, bzip2 or xz made."""
    import bz2
    import lzma
    import zlib

    unpackers: dict[str, Callable[[], Any]] = {
        "application/gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
        "application/x-bzip2": bz2.BZ2Decompressor,
        "application/x-xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    }
    # RFC 1952 section 2.3.1: the name stands behind the fixed header where flag 3 is set, unless flag 2 has more there.
    if kind == "application/gzip" and len(data) > 10 and data[3] & 0x0C == 0x08:
        name = _text(data[10:1024].partition(b"\x00")[0]) or name
    stem, dot, end = name.rpartition(".")
    if dot and end.lower() in {"gz", "bz2", "xz"}:
        name = stem
    elif dot and end.lower() in {"tgz", "tbz", "tbz2", "txz"}:
        name = f"{stem}.tar"
    # A file without a name is one all the same.
    yield name or "data", False, _unpacked(unpackers[kind], memoryview(data), name, bounds)[0]


def _tar(data: bytes) -> _Found:
    """tar(5): blocks of 512 bytes, a header and then the file."""
    at = 0
    longer = ""
    while at + _BLOCK <= len(data):
        header = data[at : at + _BLOCK]
        if not header.strip(b"\x00"):
            return
        size = _octal(header[124:136])
        content = data[at + _BLOCK : at + _BLOCK + size]
        kind = header[156:157]
        at += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK
        if kind == b"L":
            longer = _tar_name(content)
            continue
        if kind in b"xg":
            paths = _PAX_PATH.findall(content)
            longer = _tar_name(paths[-1]) if paths and kind == b"x" else longer
            continue
        prefix = _tar_name(header[345:500]) if header[257:263] == b"ustar\x00" else ""
        path = longer or "/".join(filter(None, (prefix, _tar_name(header[:100]))))
        longer = ""
        if kind != b"5":
            yield path, False, content


def _octal(field: bytes) -> int:
    """A size in octal digits, or, as GNU tar has it for large ones, in binary behind a set bit."""
    if field[:1] >= b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = re.match(rb"[ \x00]*([0-7]*)", field)
    return int(digits[1] or b"0", 8) if digits else 0


def _tar_name(field: bytes) -> str:
    return _text(field.partition(b"\x00")[0])


def _name(raw: bytes, flags: int) -> str:
    """APPNOTE.TXT appendix D: UTF-8 where the flag says so, else code page 437, or in fact often UTF-8 as well."""
    if flags & _UTF8:
        return raw.decode("utf-8", "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
