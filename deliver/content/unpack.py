"""What gzip, bzip2 and xz made, unpacked, and the files in tar archives; within bounds and without raising."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deliver.content import bounds as limits
from deliver.content.bounds import Bounds
from deliver.content.filetypes import worth_all

XZ_MEMORY = 32 * 1024 * 1024
"""Bytes. What `xz -6` makes needs 9 MiB, `xz -9` 65."""

_PIECE = 64 * 1024  # bytes, packed
_STEP = 1024 * 1024  # bytes, unpacked
_BLOCK = 512
_PAX_PATH = re.compile(rb"(?:\A|\n)[0-9]+ path=([^\n]*)\n")
_PADDING = re.compile(rb"\x00*")  # the .xz file format 1.2.1, section 2.2; gzip's on tapes
_TRAILER = 8  # bytes behind what gzip compresses
_MAGIC = {"application/gzip": b"\x1f\x8b", "application/x-bzip2": b"BZh", "application/x-xz": b"\xfd7zXZ\x00"}


class Entry(NamedTuple):
    """A file in an archive: its whole path there, "" where that is encrypted, too.

    ``content`` is all of it, as far as the bounds let, where something may be in it or all is wanted; else its front.
    """

    path: str
    encrypted: bool
    content: bytes


class Unpacked(NamedTuple):
    """``used`` is how many packed bytes were all of it, 0 where there is more or nobody knows."""

    content: bytes
    used: int = 0


def unpacked(new: Callable[[], Any], packed: memoryview, path: str, bounds: Bounds) -> Unpacked:
    """What a decompressor from ``new`` makes: the head, or all of it, where that is worth it."""
    head = some(new(), packed, limits.HEAD, bounds)
    if head.used or not (bounds.whole or worth_all(head.content, [path])):
        return head
    return some(new(), packed, limits.UNPACKED_CAP, bounds)


def some(unpacking: Any, packed: memoryview, most: int, bounds: Bounds) -> Unpacked:
    """At most ``most`` bytes, which count, and what there is of damaged data."""
    pieces = []
    left = size = min(most, max(bounds.bytes, 0))
    used = 0
    for piece, taken in _pieces(unpacking, packed, min(left, _STEP), bounds):
        pieces.append(piece[:left])
        left -= len(pieces[-1])
        used = taken
        if not left:
            break
    bounds.take(size - left)
    return Unpacked(b"".join(pieces), used if unpacking.eof else 0)


def _pieces(unpacking: Any, packed: memoryview, step: int, bounds: Bounds) -> Iterator[tuple[bytes, int]]:
    """Pieces of at most ``step`` bytes, and how many packed bytes are used by then."""
    import lzma
    import zlib

    at = 0
    piece: bytes | memoryview
    try:
        while step and not unpacking.eof and not bounds.late():
            # What is packed and not used yet is kept by zlib in our hands, by bz2 and lzma in theirs.
            piece = getattr(unpacking, "unconsumed_tail", b"")
            if not piece and getattr(unpacking, "needs_input", True):
                if at >= len(packed):
                    bounds.exceed("an archive is damaged: it ends too early")
                    return
                piece = packed[at : at + _PIECE]
                at += len(piece)
            made = unpacking.decompress(piece, step)
            # At the end zlib leaves what follows in both.
            rest = unpacking.unused_data if unpacking.eof else getattr(unpacking, "unconsumed_tail", b"")
            yield made, at - len(rest)
    except (zlib.error, OSError, ValueError) as error:
        bounds.exceed(f"an archive is damaged: {error}")
    except (lzma.LZMAError, MemoryError) as error:
        bounds.exceed(f"an archive cannot be unpacked: {error}")


def compressed(data: bytes, kind: str, name: str, bounds: Bounds) -> Iterator[Entry]:
    """The one file in what gzip, bzip2 or xz made."""
    new = _decompressor(kind)
    start, said = _front(data, kind, 0)
    name = unpacked_name(said or name)
    content, used = unpacked(new, memoryview(data)[start:], name, bounds)
    if used:
        # RFC 1952 section 2.2: several in a row are one; bzip2(1) and xz(1) have it so, too.
        pieces = [content]
        at = _next_stream(data, start + used, kind)
        while data.startswith(_MAGIC[kind], at) and bounds.bytes > 0 and not bounds.late():
            start, _ = _front(data, kind, at)
            content, used = some(new(), memoryview(data)[start:], limits.UNPACKED_CAP, bounds)
            pieces.append(content)
            if not used:
                break
            at = _next_stream(data, start + used, kind)
        content = b"".join(pieces)
    elif len(content) == limits.HEAD:
        _probe(new(), memoryview(data)[start:], bounds)
    yield Entry(name or "data", False, content)  # a file without a name is one all the same


def _next_stream(data: bytes, at: int, kind: str) -> int:
    """Where the next of several in a row would begin: behind the sum of this one, and behind padding."""
    found = _PADDING.match(data, at + (_TRAILER if kind == "application/gzip" else 0))
    return found.end() if found else len(data)


def _probe(unpacking: Any, packed: memoryview, bounds: Bounds) -> None:
    """One compressed file says nowhere how large it is, or cannot be trusted."""
    size = 0
    for piece, taken in _pieces(unpacking, packed, _STEP, Bounds()):
        size += len(piece)
        if size > limits.UNPACKED_CAP:
            bounds.sizes(size, taken)
        if size > limits.UNPACKED_CAP or taken > limits.UNPACKED_CAP // limits.RATIO or bounds.late():
            return


def _front(data: bytes, kind: str, at: int) -> tuple[int, str]:
    """Where what is compressed begins, and the name before it.

    RFC 1952 section 2.3. zlib itself would read that as well, and the sum at the end; but where that is wrong, it keeps
    what it has unpacked to itself, and others do not.
    """
    if kind != "application/gzip" or len(data) < at + 10:
        return at, ""
    flags = data[at + 3]
    at += 10
    if flags & 4:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    name = data[at : at + 1024].partition(b"\x00")[0] if flags & 8 else b""
    for flag in (8, 16):
        if flags & flag:
            end = data.find(b"\x00", at)
            at = end + 1 if end >= 0 else len(data)
    return at + (flags & 2), text(name)


def unpacked_name(name: str) -> str:
    """What is in a compressed file of that name is called so."""
    stem, dot, end = name.rpartition(".")
    if dot and end.lower() in {"gz", "bz2", "xz", "z", "lz", "lzma", "zst", "lz4"}:
        return stem
    return f"{stem}.tar" if dot and end.lower() in {"tgz", "tbz", "tbz2", "txz", "tzst", "tlz", "taz"} else name


def _decompressor(kind: str) -> Callable[[], Any]:
    import bz2
    import lzma
    import zlib

    return {
        "application/gzip": lambda: zlib.decompressobj(-zlib.MAX_WBITS),
        "application/x-bzip2": bz2.BZ2Decompressor,
        "application/x-xz": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
    }[kind]


def tar(data: bytes, bounds: Bounds) -> Iterator[Entry]:
    """What tar made: blocks of 512 bytes, a header and then the file (its section 5 man page)."""
    at = 0
    longer = ""
    while at + _BLOCK <= len(data) and not bounds.late():
        header = data[at : at + _BLOCK]
        if not header.strip(b"\x00"):
            at += _BLOCK  # its end; but behind that there may be another
            continue
        size = _octal(header[124:136])
        content = data[at + _BLOCK : at + _BLOCK + size]
        if len(content) < size:
            bounds.exceed("an archive is damaged: it ends too early")
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
            yield Entry(path, False, content)


def _octal(field: bytes) -> int:
    """A size in octal digits, or, as GNU tar has it for large ones, in binary behind a set bit."""
    if field[:1] >= b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = re.match(rb"[ \x00]*([0-7]*)", field)
    return int(digits[1] or b"0", 8) if digits else 0


def _tar_name(field: bytes) -> str:
    return text(field.partition(b"\x00")[0])


def text(raw: bytes) -> str:
    """A name in whatever character set."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
