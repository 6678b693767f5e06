"""Which files in a rar archive of version 5 are encrypted: libarchive 3.6 reads these as if they were not.

From RAR's technical note on the format: https://www.rarlab.com/technote.htm
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap

SIGNATURE = b"Rar!\x1a\x07\x01\x00"
_MOST = 20_000  # headers
_FILE, _ENCRYPTION, _END = 2, 4, 5


class Locked(NamedTuple):
    """``all``: the names, too."""

    names: frozenset[bytes]
    all: bool = False


def locked(data: "bytes | mmap.mmap") -> Locked:
    """What is encrypted, as far as the headers can be followed. Never raises."""
    names: set[bytes] = set()
    at = len(SIGNATURE)
    if data[: len(SIGNATURE)] != SIGNATURE:
        return Locked(frozenset())
    for _ in range(_MOST):
        size, start = _number(data, at + 4)  # behind the sum
        end = start + size
        kind, at = _number(data, start)
        flags, at = _number(data, at)
        extra, at = _number(data, at) if flags & 1 else (0, at)
        held, at = _number(data, at) if flags & 2 else (0, at)
        if kind == _ENCRYPTION:
            return Locked(frozenset(names), all=True)
        if kind == _END or not size or end > len(data):
            break
        if kind == _FILE and _is_encrypted(data[end - extra : end]):
            names.add(_file_name(data, at))
        at = end + held
    return Locked(frozenset(names))


def _file_name(data: "bytes | mmap.mmap", at: int) -> bytes:
    flags, at = _number(data, at)
    for _ in range(2):  # its size unpacked, and its attributes
        _, at = _number(data, at)
    at += 4 * bool(flags & 2) + 4 * bool(flags & 4)  # its time, and a sum
    for _ in range(2):  # how it is packed, and by which system
        _, at = _number(data, at)
    length, at = _number(data, at)
    return data[at : at + length]


def _is_encrypted(extra: bytes) -> bool:
    """Of the records behind a file's header the one of type 1 says how it is encrypted."""
    at = 0
    while at < len(extra):
        size, at = _number(extra, at)
        kind, _ = _number(extra, at)
        if kind == 1:
            return True
        at += max(size, 1)
    return False


def _number(data: "bytes | mmap.mmap", at: int) -> tuple[int, int]:
    """A number in pieces of seven bits, the lowest first, and where it ends; 0 beyond the data."""
    number = 0
    for shift in range(0, 70, 7):
        piece = data[at] if at < len(data) else 0
        at += 1
        number |= (piece & 0x7F) << shift
        if not piece & 0x80:
            break
    return number, at
