"""The files in archives, and in archives in these: which reader reads what, and how deep. Never raises."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deliver.content import bounds as limits
from deliver.content.bounds import Bounds
from deliver.content.filetypes import ARCHIVES, LIBARCHIVE_READS, NOBODY_READS, SOMEWHERE, detect, kind_of
from deliver.content.unpack import Entry

_RAR_7Z_CAB = re.compile(rb"Rar!\x1a\x07(?:\x00|\x01\x00)|7z\xbc\xaf\x27\x1c\x00|MSCF\x00{4}")


class Member(NamedTuple):
    """A file in an archive: its whole ``path`` there, and what its first bytes say it is; "" where unknown.

    ``inside`` are the archives in the archive that hold it, the outermost first. ``content`` is all of it where
    something may be in it or all is wanted, else its front. ``kind`` is that of the archive which it lies in.
    """

    path: str
    detected: str = ""
    encrypted: bool = False
    inside: tuple[str, ...] = ()
    content: bytes = b""
    kind: str = ""


def members(
    data: bytes, kind: str, name: str, bounds: Bounds, depth: int = 1, inside: tuple[str, ...] = ()
) -> Iterator[Member]:
    """The files in an archive, those of archives in it behind each. ``kind`` is what ``kind_of`` says of it.

    ``name`` is the archive's own: what a gzip file holds is called so, without the ".gz".
    """
    if depth > limits.DEEPEST:
        bounds.exceed("archives lie too deep in each other")
        return
    if bounds.late():
        return
    for path, encrypted, content in _entries(data, kind, name, bounds):
        if bounds.files <= 0:
            bounds.exceed("archives hold too many files")
            return
        bounds.files -= 1
        if path.endswith("/") or not (path or encrypted or content):
            continue
        yield Member(path, detect(content[: limits.HEAD]), encrypted, inside, content, kind)
        if inner := kind_of(content, [path]):
            yield from members(content, inner, re.split(r"[/\\]", path)[-1], bounds, depth + 1, (*inside, path))


def _entries(data: bytes, kind: str, name: str, bounds: Bounds) -> Iterator[Entry]:
    if kind in {"application/zip", "application/java-archive"}:
        from deliver.content import zips

        return zips.entries(data, bounds)
    if kind in LIBARCHIVE_READS:
        from deliver.content import libarchive

        return libarchive.entries(data, kind, name, bounds)
    if kind == SOMEWHERE:
        return _embedded(data, name, bounds)
    if kind in NOBODY_READS:
        bounds.exceed(f"an archive cannot be read: nothing here knows {kind.rpartition('/')[2]}")
        return iter(())
    from deliver.content import unpack

    return unpack.tar(data, bounds) if kind == "application/x-tar" else unpack.compressed(data, kind, name, bounds)


def _embedded(data: bytes, name: str, bounds: Bounds) -> Iterator[Entry]:
    """The first archive of each kind that begins somewhere in the data: programs that unpack themselves have these.

    Programs that unpack anything hold the same first bytes without an archive behind them.
    """
    kinds = {detect(data)} & ARCHIVES
    for kind in kinds:
        yield from _entries(data, kind, name, bounds)
    if "application/zip" not in kinds and data.rfind(b"PK\x05\x06", max(len(data) - 0x10015, 0)) >= 0:
        yield from _entries(data, "application/zip", name, bounds)
    for found in _RAR_7Z_CAB.finditer(data):
        at = found.start()
        kind, holds = _HEADERS[found[0][:1]]
        if kind not in kinds and holds(data[at : at + 64 * 1024]):
            kinds.add(kind)
            yield from _entries(data[at:], kind, name, bounds)
        if bounds.late():
            return


def _is_7z(data: bytes) -> bool:
    """7zFormat.txt, "SignatureHeader": the sum of the 20 bytes that say where the next header is."""
    return len(data) >= 32 and struct.unpack_from("<I", data, 8)[0] == zlib.crc32(data[12:32])


def _is_rar(data: bytes) -> bool:
    """RAR's technical notes: the first header's sum, of 16 bits over 11 bytes, or of 32 behind a size of one byte."""
    if data[6:7] == b"\x00":
        return len(data) >= 20 and struct.unpack_from("<H", data, 7)[0] == zlib.crc32(data[9:20]) & 0xFFFF
    return len(data) >= 13 and struct.unpack_from("<I", data, 8)[0] == zlib.crc32(data[12 : 13 + data[12]])


def _is_cab(data: bytes) -> bool:
    """[MS-CAB] 2.1: fields that are 0, and version 1.3."""
    return len(data) >= 36 and not any(data[4:8] + data[12:16] + data[20:24]) and data[24:26] == b"\x03\x01"


_HEADERS: dict[bytes, tuple[str, Callable[[bytes], bool]]] = {
    b"7": ("application/x-7z-compressed", _is_7z),
    b"R": ("application/vnd.rar", _is_rar),
    b"M": ("application/vnd.ms-cab-compressed", _is_cab),
}
