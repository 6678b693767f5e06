"""What a file is by its first bytes, whatever it is called; and whether these are enough to know what is in it."""

import re
from collections.abc import Collection, Iterable

HEAD = 4096
"""First bytes that are enough to know."""

# Media types as IANA has them, else as file(1) says. The order matters where one signature begins like another.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"PK\x07\x08", "application/zip"),
    (0, b"PK00PK\x03\x04", "application/zip"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"MSCF", "application/vnd.ms-cab-compressed"),
    (0, b"070701", "application/x-cpio"),
    (0, b"070702", "application/x-cpio"),
    (0, b"070707", "application/x-cpio"),
    (0, b"!<arch>\n", "application/x-archive"),
    (0, b"\xed\xab\xee\xdb", "application/x-rpm"),
    (0, b"xar!\x00", "application/x-xar"),
    (0, b"\x1f\x9d", "application/x-compress"),
    (0, b"LZIP\x01", "application/x-lzip"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"\x04\x22\x4d\x18", "application/x-lz4"),
    (7, b"**ACE**", "application/x-ace"),
    (20, b"\xdc\xa7\xc4\xfd", "application/x-zoo"),
    (0, b"MSWIM\x00\x00\x00", "application/x-ms-wim"),
    (0, b"vhdxfile", "application/x-vhdx"),
    (0, b"conectix", "application/x-vhd"),
    (0, b"ALZ\x01", "application/x-alz"),
    (0, b"EGGA", "application/x-egg"),
    (257, b"ustar", "application/x-tar"),
    # ECMA-119 section 8, ECMA-167 part 2 section 9: volume descriptors begin at sector 16, of 2048 bytes.
    (0x8001, b"CD001", "application/x-iso9660-image"),
    (0x8001, b"BEA01", "application/x-udf-image"),
    (0, b"MZ", "application/vnd.microsoft.portable-executable"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"\xfe\xed\xfa\xce", "application/x-mach-binary"),
    (0, b"\xfe\xed\xfa\xcf", "application/x-mach-binary"),
    (0, b"\xce\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"\xcf\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"\xca\xfe\xba\xbe", "application/java-vm"),
    (0, b"\x4c\x00\x00\x00\x01\x14\x02\x00", "application/x-ms-shortcut"),
    (0, b"ITSF\x03\x00\x00\x00", "application/vnd.ms-htmlhelp"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"\x78\x9f\x3e\x22", "application/vnd.ms-tnef"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/vnd.wave"),
    (8, b"AVI ", "video/vnd.avi"),
    (4, b"ftyp", "video/mp4"),
    (0, b"OggS", "application/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"BM", "image/bmp"),
    (0, b"#!", "text/x-shellscript"),
)
# Those that a file with this first byte may have.
_BY_FIRST = tuple(tuple(one for one in _SIGNATURES if one[0] or one[1][0] == first) for first in range(256))
_LZH = re.compile(rb".{2}-l[hz][0-9sd]-", re.DOTALL)
# The properties of `lzma`, a dictionary of full KiB, and the size: unknown, or below 2**40.
_LZMA = re.compile(rb"\x5d\x00\x00.{2}(?:\xff{8}|.{5}\x00{3})", re.DOTALL)
# ARJ's technical note: the main header's size, 2600 at most, its fixed part's, and the file type 2 of a main header.
_ARJ = re.compile(rb"\x60\xea.[\x00-\x0a][\x1e-\x30].{5}\x02", re.DOTALL)
# cpio's first format, in either order of bytes: its number, eight of 16 bits, and so on to the NUL behind a name.
_CPIO = re.compile(rb"(?:\xc7\x71|\x71\xc7).{24}[^\x00]{1,256}\x00", re.DOTALL)
# RFC 8878 section 3.1.2: a frame to be passed over, as pzstd(1) writes.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_BINHEX = re.compile(rb"\s*\(This file must be converted with BinHex")
BINHEX = "application/mac-binhex40"
_WEAK = (
    (_LZH, "application/x-lzh-compressed"),
    (_LZMA, "application/x-lzma"),
    (_ARJ, "application/x-arj"),
    (_CPIO, "application/x-cpio"),
    (_SKIPPABLE, "application/zstd"),
    (_BINHEX, BINHEX),
)
_RIFF = frozenset({"image/webp", "audio/vnd.wave", "video/vnd.avi"})
_HTML = re.compile(rb"(?i)\s*<(?:!doctype html|html|head|body|script)\b")
_BINARY = re.compile(rb"[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f]")

# The first entry of these zip files says what they are (OpenDocument 1.3 part 2 section 3.3, EPUB OCF section 4.3).
_FIRST_ENTRY = re.compile(rb"PK\x03\x04.{22}(.{2})(.{2})", re.DOTALL)
_OFFICE = (
    (b"word/", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    (b"xl/", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (b"ppt/", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
)


def detect(head: bytes) -> str:
    """The media type of a file that begins so; "" for an empty one. ``head`` are its first HEAD bytes or all."""
    if not head:
        return ""
    for offset, signature, name in _BY_FIRST[head[0]]:
        if head.startswith(signature, offset) and (name not in _RIFF or head.startswith(b"RIFF")):
            return _zip_based(head) if name == "application/zip" else name
    for pattern, name in _WEAK:
        if pattern.match(head):
            return name
    if _old_tar(head):
        return "application/x-tar"
    if _HTML.match(head):
        return "text/html"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text/plain"  # UTF-16
    return "application/octet-stream" if _BINARY.search(head) else "text/plain"


def _old_tar(head: bytes) -> bool:
    """tar(5), the format before "ustar": only its sum, in which its own field counts as blanks, marks a header."""
    said = re.match(rb" *([0-7]{1,7})[\x00 ]", head[148:156]) if len(head) >= 512 else None
    return said is not None and int(said[1], 8) == sum(head[:148]) + sum(head[156:512]) + 8 * 32


def _zip_based(head: bytes) -> str:
    """A zip file that is a document."""
    first = _FIRST_ENTRY.match(head)
    if first is None:
        return "application/zip"
    length, extra = (int.from_bytes(field, "little") for field in first.groups())
    name = head[30 : 30 + length]
    if name == b"mimetype":
        said = head[30 + length + extra :][:100]
        found = re.match(rb"application/[a-z0-9.+-]+", said)
        if found and b"zip" not in found[0].rpartition(b"+")[0]:
            return found[0].partition(b"PK")[0].decode("ascii")
    if name in {b"[Content_Types].xml", b"_rels/.rels", b"docProps/app.xml", b"docProps/core.xml"}:
        for directory, kind in _OFFICE:
            if directory in head:
                return kind
        return "application/vnd.openxmlformats-package"
    if name in {b"META-INF/", b"META-INF/MANIFEST.MF"}:
        return "application/java-archive"
    return "application/zip"


PYTHON_READS = frozenset(
    "application/zip application/java-archive application/x-tar application/gzip application/x-bzip2 "
    "application/x-xz".split()
)
LIBARCHIVE_READS = frozenset(
    "application/x-7z-compressed application/vnd.rar application/vnd.ms-cab-compressed application/x-lzh-compressed "
    "application/x-iso9660-image application/x-cpio application/x-archive application/x-rpm application/x-xar "
    "application/x-compress application/x-lzip application/x-lzma application/zstd application/x-lz4".split()
)
NOBODY_READS = frozenset(
    "application/x-ace application/x-arj application/x-zoo application/x-ms-wim application/x-vhdx application/x-vhd "
    "application/x-alz application/x-egg application/x-udf-image".split()
)
ARCHIVES = PYTHON_READS | LIBARCHIVE_READS | NOBODY_READS

SOMEWHERE = "somewhere"
"""The kind of a file in which an archive may begin anywhere: a program that unpacks itself, or another by its name."""

PROGRAM = "application/vnd.microsoft.portable-executable"
OLE = "application/x-ole-storage"
PDF = "application/pdf"
TNEF = "application/vnd.ms-tnef"

_SIGNED = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"  # 1.2.840.113549.1.7.2 (RFC 5652 section 5.1)
_PACKED = {
    "zip": "application/zip",
    "jar": "application/java-archive",
    "rar": "application/vnd.rar",
    "r00": "application/vnd.rar",
    "7z": "application/x-7z-compressed",
    "cab": "application/vnd.ms-cab-compressed",
}
_DISKS = frozenset({"iso", "img", "udf"})
_DOCUMENTS = frozenset(
    "docx docm dotx dotm xlsx xlsm xltx xltm xlsb xlam pptx pptm potx potm ppsx ppsm ppam odt ods odp odg ott ots otp "
    "odm odb epub vsdx vsdm".split()
)
_TEXT_DOCUMENTS = frozenset("doc dot xls xlt ppt pot pps rtf xml mht mhtml fodt fods fodp".split())
_LETTERS = frozenset({"eml", "mht", "mhtml"})
_ENCODINGS = frozenset({"uu", "uue", "hqx"})
_ZIPS = frozenset({"application/zip", "application/java-archive"})
_BEGIN = re.compile(rb"(?m)^begin(?:-base64)?[ \t]+[0-7]{3,7}[ \t]+\S")  # uuencode(5)
_LZMA_NAMES = frozenset({"lzma", "tlz"})  # its properties may be any: nothing tells it from other bytes
_SAID = frozenset({"[content_types].xml", "manifest.xml"})
_OFFICE_XML = re.compile(rb"(?s)\s*<\?xml.{0,1000}(?:mso-application|office:document)")
_ACTIVE_MIME = re.compile(rb"(?im)^mime-version:.*\n")


def kind_of(head: bytes, names: Iterable[str]) -> str:
    """How to read a file that begins so as an archive; "" if it is none. ``names`` are all that it has.

    A document that is a zip file is one of these only under another name than a document's, since then programs open
    it as an archive.
    """
    detected = detect(head)
    ends = {extension(name) for name in names}
    called = {_PACKED[end] for end in ends if end in _PACKED}
    if detected in ARCHIVES:
        # Two archives may be one file: programs open that which its name says, wherever it begins.
        return detected if not called or detected in called or _ZIPS.issuperset({detected, *called}) else SOMEWHERE
    if head.startswith(b"PK\x03\x04"):
        return "" if ends & _DOCUMENTS else "application/zip"
    if ends & _LZMA_NAMES and head:
        return "application/x-lzma"
    return SOMEWHERE if head and (detected == PROGRAM or called) else ""


def is_document(head: bytes, names: Iterable[str]) -> bool:
    """Whether a file that begins so may have macros or be encrypted: then all of it is needed to know."""
    if head.startswith(b"PK\x03\x04"):
        return detect(head) not in PYTHON_READS or any(extension(name) in _DOCUMENTS for name in names)
    if any(extension(name) in _TEXT_DOCUMENTS for name in names):
        return detect(head) in {OLE, PDF} or bool(_OFFICE_XML.match(head) or _ACTIVE_MIME.match(head))
    return detect(head) in {OLE, PDF}


def is_letter(names: Iterable[str]) -> bool:
    """Whether a file is a message by its name: a mail program opens it as one."""
    return any(extension(name) in _LETTERS for name in names)


def is_encoding(head: bytes, names: Iterable[str]) -> bool:
    """Whether a file that begins so holds another one that is written as a text."""
    if any(extension(name) in _ENCODINGS for name in names):
        return True
    return detect(head) == BINHEX or (b"begin" in head[:HEAD] and _BEGIN.search(head[:HEAD]) is not None)


def is_signed(head: bytes) -> bool:
    """Whether a file that begins so is a message that S/MIME has signed in one piece, or a signature alone."""
    return head[:1] == b"\x30" and _SIGNED in head[:64]


def worth_all(head: bytes, names: Collection[str]) -> bool:
    """Whether more than the head of a file has to be read, to find what is in it."""
    if kind_of(head, names) or is_document(head, names) or is_letter(names) or is_encoding(head, names):
        return True
    if detect(head) == TNEF or is_signed(head):
        return True
    # A disk's first 32 KiB are not its file system's; mostly they are empty.
    disk = len(head) >= 512 and (not head.strip(b"\x00") or any(extension(name) in _DISKS for name in names))
    return disk or any(re.split(r"[/\\]", name)[-1].lower() in _SAID for name in names)


def extension(name: str) -> str:
    """What follows the last dot of a file's name, in lower case, without the dot; "" where there is none."""
    base, dot, end = name.rpartition(".")
    return end.lower() if dot and base else ""
