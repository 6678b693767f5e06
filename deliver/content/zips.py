"""The files in zip archives, all that any program could find there; within bounds and without raising.

A damaged or forged archive shows different files to different programs (APPNOTE.TXT sections 4.3.6, 4.3.7 and 4.3.12):
so its directory at the end counts as well as the headers before each file, wherever they stand.
"""

import re
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deliver.content import bounds as limits
from deliver.content.bounds import Bounds
from deliver.content.unpack import XZ_MEMORY, Entry, Unpacked, unpacked

_LOCAL = b"PK\x03\x04"
_CENTRAL = b"PK\x01\x02"
_END = b"PK\x05\x06"
_LONGEST_END = 22 + 0xFFFF
_ENCRYPTED = 0x01 | 0x40 | 0x2000  # with a password, strongly, and names, too (APPNOTE.TXT section 4.4.4)
_AES = 99
_UTF8 = 0x800
_NEXT = re.compile(rb"PK(?:\x07\x08|\x03\x04|\x01\x02)")
_UNKNOWN = {0, 0xFFFFFFFF}


class _Listed(NamedTuple):
    """A file as the directory has it. Sizes in bytes."""

    packed: int
    size: int


def entries(data: bytes, bounds: Bounds) -> Iterator[Entry]:
    """Every entry that a program could find."""
    listed = _listed(data, bounds)
    bounds.sizes(sum(one.size for one in listed.values()), len(data))
    places = sorted(listed)  # the directory's own at the end
    seen: set[tuple[str, bool]] = set()
    read: list[tuple[int, int]] = []  # what lies in a file that was read whole is no entry of this archive
    at = data.find(_LOCAL)
    while 0 <= at <= len(data) - 30 and not bounds.late():
        flags, method, size, length, extra = struct.unpack_from("<6xHH8xI4xHH", data, at)
        start = at + 30 + length + extra
        path = _name(data[at + 30 : at + 30 + length], flags)
        encrypted = bool(flags & _ENCRYPTED) or method == _AES
        seen.add((path, encrypted))
        content, used = b"", 0
        if not encrypted:
            said = listed.get(at)
            size = max(0 if size in _UNKNOWN else size, said.packed if said else 0) or _until_next(data, start)
            content, used = _content(data, start, size, method, path, bounds)
            # A size may be forged, so that what programs find by the directory would seem to lie in another file.
            after = bisect_left(places, start)
            if after < len(places) and places[after] < start + used:
                used = 0
        yield Entry(path, encrypted, content)
        if other := _unicode_path(data[start - extra : start], path):
            seen.add((other, encrypted))
            yield Entry(other, encrypted, content)
        if used:
            read.append((start, start + used))
        at = data.find(_LOCAL, start + used if used else at + 4)
    yield from _others(data, seen, read, bounds)


def _listed(data: bytes, bounds: Bounds) -> dict[int, _Listed]:
    """What the directory lists, by its place in the data; the directory itself, too, as empty.

    APPNOTE.TXT sections 4.3.12, 4.3.14 and 4.3.16. Places are counted from what stands before the archive, as where it
    is the end of a program.
    """
    end = data.rfind(_END, max(len(data) - _LONGEST_END, 0))
    if not 0 <= end <= len(data) - 22:
        bounds.exceed("an archive is damaged: it has no directory")
        return {}
    disk, count, size, offset = struct.unpack_from("<4xH4xHII", data, end)
    wide = data.rfind(b"PK\x06\x06", max(end - 4096, 0), end) if end >= 76 else -1
    if 0 <= wide <= end - 56 and (offset == 0xFFFFFFFF or size == 0xFFFFFFFF or count == 0xFFFF):
        end = wide
        count, size, offset = struct.unpack_from("<32xQQQ", data, wide)
    if disk not in {0, 0xFFFF}:
        bounds.exceed("an archive is only one of several parts")
    start = max(end - size, 0)
    found = {start: _Listed(0, 0)}
    at, number = start, 0
    while data.startswith(_CENTRAL, at) and at <= len(data) - 46 and number < 2 * limits.MOST_FILES:
        if bounds.late():
            return found
        packed, full, name, extra, comment, place = struct.unpack_from("<20xIIHHH8xI", data, at)
        if 0xFFFFFFFF in {packed, full, place}:
            more = data[at + 46 + name : at + 46 + name + extra]
            full, packed, place = _wide(more, full, packed, place)
        place += start - offset
        if place < 0 or not data.startswith(_LOCAL, place):
            bounds.exceed("an archive is damaged: a file is not where its directory says")
        found[place] = _Listed(packed, full)
        at += 46 + name + extra + comment
        number += 1
    if number & 0xFFFF != count & 0xFFFF and number < 2 * limits.MOST_FILES:
        bounds.exceed("an archive is damaged: its directory is not as it says")
    return found


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """The numbers that have no room in 32 bits from the extra field for zip64 (APPNOTE.TXT section 4.5.3)."""
    field = _field(extra, 1)
    held = [int.from_bytes(field[one : one + 8], "little") for one in range(0, len(field), 8)]
    return [held.pop(0) if number == 0xFFFFFFFF and held else number for number in numbers]


def _unicode_path(extra: bytes, path: str) -> str:
    """The other name that Info-ZIP's extra field has (APPNOTE.TXT section 4.6.9), "" for none: many programs take it.

    The sum in it says whether the name before it is still the one it was made for; not all look at that.
    """
    field = _field(extra, 0x7075)
    other = field[5:].decode("utf-8", "replace")
    return other if other != path else ""


def _field(extra: bytes, kind: int) -> bytes:
    """What the first extra field of this kind holds, b"" where there is none (APPNOTE.TXT section 4.5.1)."""
    at = 0
    while at + 4 <= len(extra):
        found, size = struct.unpack_from("<HH", extra, at)
        if found == kind:
            return extra[at + 4 : at + 4 + size]
        at += 4 + size
    return b""


def _until_next(data: bytes, start: int) -> int:
    """The size of what says nowhere how large it is: up to the next header."""
    found = _NEXT.search(data, start)
    return max((found.start() if found else len(data)) - start, 0)


def _content(data: bytes, start: int, size: int, method: int, path: str, bounds: Bounds) -> Unpacked:
    """What one entry holds, only its head where that is enough; and how many bytes of ``data`` were all of it."""
    import bz2
    import lzma
    import zlib

    packed = memoryview(data)[start:]
    if method == 0:
        return Unpacked(data[start : start + size], size if size <= len(packed) else 0)
    if method == 8:
        return unpacked(lambda: zlib.decompressobj(-zlib.MAX_WBITS), packed, path, bounds)
    if method == 12:
        return unpacked(bz2.BZ2Decompressor, packed, path, bounds)
    if method == 95:
        return unpacked(lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY), packed, path, bounds)
    if method == 14 and len(packed) >= 9 and (new := _lzma(bytes(packed[:9]))):
        return unpacked(new, packed[9:size], path, bounds)._replace(used=0)
    if size and not path.endswith("/"):
        bounds.exceed(f"an archive is packed in a way that cannot be read (method {method})")
    return Unpacked(b"")


def _lzma(head: bytes) -> Callable[[], Any] | None:
    """APPNOTE.TXT section 5.8.8: a version, five as the size of the properties, and these."""
    import lzma

    size, about, dictionary = struct.unpack("<2xHBI", head)
    if size != 5 or about >= 9 * 5 * 5 or dictionary > XZ_MEMORY:
        return None
    filters = [
        {"id": lzma.FILTER_LZMA1, "dict_size": dictionary, "lc": about % 9, "lp": about // 9 % 5, "pb": about // 45}
    ]
    return lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)


def _others(data: bytes, seen: set[tuple[str, bool]], read: list[tuple[int, int]], bounds: Bounds) -> Iterator[Entry]:
    """What any directory names that stood before no file."""
    at = data.find(_CENTRAL)
    for _ in range(2 * limits.MOST_FILES):
        if not 0 <= at <= len(data) - 46 or bounds.late():
            return
        while read and read[0][1] <= at:
            del read[0]
        if read and read[0][0] <= at:
            at = data.find(_CENTRAL, read[0][1])
            continue
        flags, method, length, extra = struct.unpack_from("<8xHH16xHH", data, at)
        start = at + 46 + length
        path = _name(data[at + 46 : start], flags)
        encrypted = bool(flags & _ENCRYPTED) or method == _AES
        for key in ((path, encrypted), (_unicode_path(data[start : start + extra], path), encrypted)):
            if key[0] and key not in seen:
                seen.add(key)
                yield Entry(*key, b"")
        at = data.find(_CENTRAL, at + 46)
    bounds.exceed("archives hold too many files")


def _name(raw: bytes, flags: int) -> str:
    """APPNOTE.TXT appendix D: UTF-8 where the flag says so, else code page 437, or in fact often UTF-8 as well."""
    if flags & _UTF8:
        return raw.decode("utf-8", "replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")
