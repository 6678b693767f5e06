"""What is in an S/MIME message that is signed in one piece (RFC 8551 section 3.5.2), which mail programs open."""

_DATA = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01"  # 1.2.840.113549.1.7.1, the type of what is signed
_OCTETS, _IN_PIECES, _TAGGED = 0x04, 0x24, 0xA0  # X.690 sections 8.1.2 and 8.7
_MOST = 1_000_000  # pieces


def content(data: bytes) -> bytes:
    """The MIME entity that is signed, b"" for a signature alone; of a damaged one what can be read. Never raises."""
    at = data.find(_DATA)
    if at < 0:
        return b""
    at += len(_DATA)
    pieces = []
    for _ in range(_MOST):
        if at + 2 > len(data):
            break
        tag, size = data[at], data[at + 1]
        at += 2
        if size > 0x80:
            width = size - 0x80
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        elif size == 0x80:
            size = 0  # until two NULs
        if tag == _OCTETS:
            pieces.append(data[at : at + size])
            at += size
        elif tag not in (_IN_PIECES, _TAGGED) and (tag or size):
            break
    return b"".join(pieces)
