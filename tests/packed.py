"""Archives for the tests: ordinary ones, and those that no program here makes: hostile ones, and rar, which only its
owner's program writes.
"""

import io
import struct
import zipfile
import zlib


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of these names and contents."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return written.getvalue()


def zip_of(name: bytes, packed: bytes, size: int, *, flags: int = 0, method: int = 8, spare: int = 0) -> bytes:
    """A zip file with one entry, as it says itself (APPNOTE.TXT sections 4.3.7, 4.3.12, 4.3.16)."""
    sizes = struct.pack("<II", len(packed), size)
    local = b"PK\x03\x04" + struct.pack("<HHHHHI", 20, flags, method, 0, 0, 0) + sizes
    local += struct.pack("<HH", len(name), 0) + name + packed
    central = b"PK\x01\x02" + struct.pack("<HHHHHHI", 20, 20, flags, method, 0, 0, 0) + sizes
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, spare) + name
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def zeros(gigabytes: int) -> bytes:
    """So much of nothing, deflated: about a thousandth."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = deflate.compress(bytes(64 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return block * (16 * gigabytes) + b"\x03\x00"


def overlapping(files: int, kernel: int) -> bytes:
    """David Fifield's quoted overlap (USENIX WOOT 2019): each file's data are all headers and data behind its own."""
    heads = [
        b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, 0, 0, 5, 0) + b"%05d" % n for n in range(files)
    ]
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = []
    places = []
    at = 0
    for number, head in enumerate(heads):
        places.append(at)
        size = len(heads[number + 1]) if number + 1 < files else 0
        pieces.append(head + (b"\x00" + struct.pack("<HH", size, size ^ 0xFFFF) if size else b""))
        at += len(pieces[-1])
    body = b"".join(pieces) + deflate.compress(bytes(kernel)) + deflate.flush()
    central = b"".join(
        b"PK\x01\x02"
        + struct.pack("<HHHHHHIII", 20, 20, 0, 8, 0, 0, 0, len(body) - place - 35, kernel)
        + struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, place)
        + b"%05d" % number
        for number, place in enumerate(places)
    )
    return body + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, files, files, len(central), len(body), 0)


def quine() -> bytes:
    """A gzip file that unpacks to itself but for its sum, by the plan of Russ Cox: "Zip Files All The Way Down"."""

    def literal(size: int) -> bytes:  # RFC 1951 section 3.2.4: a block of bytes as they are
        return b"\x00" + struct.pack("<HH", size, size ^ 0xFFFF)

    def again(size: int) -> bytes:  # section 3.2.6: the last 17 to 20 bytes once more, in two pieces, in five bytes
        bits = [0, 1, 0]
        for part in (10, size - 10):
            bits += [(part - 2) >> bit & 1 for bit in range(6, -1, -1)] + [0, 1, 0, 0, 0]
            bits += [(size - 17) >> bit & 1 for bit in range(3)]
        bits += [0] * 7
        return bytes(sum(bits[8 * byte + bit] << bit for bit in range(8)) for byte in range(5))

    front = b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03r\x00"
    end = b"\x01\x00\x00\xff\xff" + bytes(8)
    f, e = len(front) + 5, len(end) + 5
    zero, one, four = literal(0), literal(5), literal(20)
    made = front + literal(f) + front + literal(f) + again(f) + one + again(f) + one + one + four
    made += again(f) + one + one + four + again(20) + four + again(20) + four + again(20) + four + again(20) + four
    made += (
        again(20) + zero + zero + literal(e) + again(20) + zero + zero + literal(e) + again(e) + end + again(e) + end
    )
    assert zlib.decompressobj(-zlib.MAX_WBITS).decompress(made[len(front) :]) == made
    return made


def rar(*files: tuple[bytes, bytes, bool], header: bool = False) -> bytes:
    """A rar archive of version 5 with stored files: name, content, and whether it claims to be encrypted.

    With ``header`` the names are encrypted. As https://www.rarlab.com/technote.htm has it.
    """

    def number(value: int) -> bytes:
        pieces = bytearray()
        while value >= 0x80:
            pieces.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes(pieces) + bytes([value])

    def block(held: bytes, data: bytes = b"") -> bytes:
        sized = number(len(held)) + held
        return struct.pack("<I", zlib.crc32(sized)) + sized + data

    made = b"Rar!\x1a\x07\x01\x00"
    if header:
        return made + block(number(4) + number(0) + number(0) + number(0) + b"\x0f" + bytes(16)) + bytes(64)
    made += block(number(1) + number(0) + number(0))
    for name, content, locked in files:
        crypt = number(1) + number(0) + number(0) + b"\x0f" + bytes(32)
        extra = number(len(crypt)) + crypt if locked else b""
        head = number(2) + number(2 | bool(extra)) + (number(len(extra)) if extra else b"") + number(len(content))
        head += number(4) + number(len(content)) + number(0o644) + struct.pack("<I", zlib.crc32(content))
        head += number(0) + number(1) + number(len(name)) + name + extra
        made += block(head, content)
    return made + block(number(5) + number(0) + number(0))


def ole(*paths: str, held: dict[str, bytes] | None = None) -> bytes:
    """A compound file with these storages ("VBA/") and streams ("VBA/dir"), as [MS-CFB] has it; streams of 4 KiB."""
    held = held or {}
    nodes: list[list[int | str]] = [["Root Entry", 5, -1, -1, -1, 0xFFFFFFFE, 0]]  # name, type, left, right, child...
    places = {"": 0}
    data = b""
    for path in paths:
        parent, _, name = path.rstrip("/").rpartition("/")
        places[path.rstrip("/")] = len(nodes)
        content = held.get(path, b"").ljust(4096, b"\x00") if not path.endswith("/") else b""
        start = len(data) // 512 if content else 0
        nodes.append([name, 2 if content else 1, -1, -1, -1, start, len(content)])
        data += content
        at = nodes[places[parent]]
        if at[4] == -1:
            at[4] = len(nodes) - 1
            continue
        sibling = nodes[int(at[4])]
        while sibling[3] != -1:  # in order of length, then of letters: the tests name them so
            sibling = nodes[int(sibling[3])]
        sibling[3] = len(nodes) - 1
    directory = b""
    for name, kind, left, right, child, start, size in nodes:
        text = str(name).encode("utf-16-le") + b"\x00\x00"
        links = struct.pack("<iii", left, right, child)
        entry = text.ljust(64, b"\x00") + struct.pack("<HBB", len(text), kind, 1) + links + bytes(36)
        directory += entry + struct.pack("<IQ", int(start), size)
    directory += (b"\x00" * 68 + b"\xff" * 12 + b"\x00" * 48) * (-len(nodes) % 4)
    streams, folders = len(data) // 512, len(directory) // 512
    fat = [one + 1 if (one + 1) % 8 else 0xFFFFFFFE for one in range(streams)]
    fat += [streams + one + 1 for one in range(folders - 1)] + [0xFFFFFFFE, 0xFFFFFFFD]
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    header += struct.pack("<IIIIIIIII", 0, 1, streams, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0)
    header += struct.pack("<I", streams + folders) + b"\xff" * (108 * 4)
    return header + data + directory + struct.pack(f"<{len(fat)}I", *fat) + b"\xff" * (4 * (128 - len(fat)))
