"""The files in winmail.dat: [MS-OXTNEF], in which Outlook sends attachments to those whom it takes for its like."""

import struct
from collections.abc import Iterator

_RENDERING, _TITLE, _DATA, _PROPERTIES = 0x9002, 0x8010, 0x800F, 0x9005
_LONG_NAME, _OBJECT = 0x3707, 0x3701  # PidTagAttachLongFilename, PidTagAttachDataBinary or ...Object
# [MS-OXCDATA] 2.11.1: how many bytes a value of a type has; padded to four.
_FIXED = {0x02: 4, 0x03: 4, 0x04: 4, 0x05: 8, 0x06: 8, 0x07: 8, 0x0A: 4, 0x0B: 4, 0x14: 8, 0x40: 8, 0x48: 16}
_MANY = 0x1000
_OBJECT_TYPE, _ASCII, _UNICODE = 0x0D, 0x1E, 0x1F
_MOST = 10_000  # attributes, properties of one, values of one


def files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The name and what is in each file. Never raises; a damaged one is read as far as it goes."""
    name, content, begun = "", b"", False
    at = 6
    for _ in range(_MOST):
        if at + 9 > len(data):
            break
        kind, size = struct.unpack_from("<xHxxI", data, at)
        held = data[at + 9 : at + 9 + size]
        at += 9 + size + 2  # a sum of 16 bits
        if kind == _RENDERING:  # [MS-OXTNEF] 2.1.3.3.15: it comes first of each attachment's
            if begun:
                yield name, content
            name, content, begun = "", b"", True
        elif kind == _TITLE:
            name = name or held.partition(b"\x00")[0].decode("cp1252", "replace")
        elif kind == _DATA:
            content = held
        elif kind == _PROPERTIES:
            said, inner = _properties(held)
            name, content = said or name, content or inner
    if begun:
        yield name, content


def _properties(data: bytes) -> tuple[str, bytes]:
    """[MS-OXTNEF] 2.1.3.4: the long name, and a message or an OLE object that is the attachment."""
    name, content = "", b""
    at = 4
    for _ in range(min(_number(data, 0), _MOST)):
        kind, tag = _number(data, at, 2), _number(data, at + 2, 2)
        at += 4
        if tag >= 0x8000:  # a named property: a GUID, and a number or a name
            length = _number(data, at + 20) if _number(data, at + 16) == 1 else 0
            at += 24 + length + -length % 4
        many, kind = bool(kind & _MANY), kind & ~_MANY
        fixed = _FIXED.get(kind)
        count = 1
        if many or fixed is None:
            count, at = _number(data, at), at + 4
        for _ in range(min(count, _MOST)):
            if fixed is not None:
                at += fixed
                continue
            size = _number(data, at)
            value = data[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4
            if tag == _LONG_NAME:
                name = value.decode("utf-16-le" if kind == _UNICODE else "cp1252", "replace").rstrip("\x00")
            elif tag == _OBJECT:
                content = value[16:] if kind == _OBJECT_TYPE else value  # behind the interface's GUID
        if at >= len(data):
            break
    return name, content


def _number(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "little")
