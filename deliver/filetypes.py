"""What a file is by its first bytes, whatever it is called."""

import re

HEAD = 4096
"""First bytes that are enough to know."""

# Media types as IANA has them, else as file(1) says. The order matters where one signature begins like another.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
    (0, b"PK\x07\x08", "application/zip"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"MSCF", "application/vnd.ms-cab-compressed"),
    (257, b"ustar", "application/x-tar"),
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
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset) and (name not in _RIFF or head.startswith(b"RIFF")):
            return _zip_based(head) if name == "application/zip" else name
    if _HTML.match(head):
        return "text/html"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text/plain"  # UTF-16
    return "application/octet-stream" if _BINARY.search(head) else "text/plain"


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


def extension(name: str) -> str:
    """What follows the last dot of a file's name, in lower case, without the dot; "" where there is none."""
    base, dot, end = name.rpartition(".")
    return end.lower() if dot and base else ""
