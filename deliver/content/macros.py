"""Office documents: whether they have macros, and whether they are encrypted; by what must be there for either.

Where the optional package oletools is installed, it is asked as well about documents that show no macros of themselves.
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deliver.content.archives import members
from deliver.content.bounds import DEEPEST, Bounds
from deliver.content.filetypes import OLE, PDF, detect, is_document

_MEMORY = 512 * 1024 * 1024  # bytes of addresses for oletools: most of them are libraries'
_SECONDS = 3.0
_LEAST = 1.5  # seconds, when looking at the archives took all the time there is; half of it goes for importing oletools

_CONTENT_TYPES = re.compile(rb"(?i)vbaProject|macroEnabled|macrosheet")
_TEXTS = re.compile(
    rb"(?i)macrosPresent\s*=\s*[\"']yes|ms-office\.vbaProject|editdata\.mso|QWN0aXZlTWlt|<(?:\w+:)?script-module\b"
)
# ISO 32000-1 section 7.5.5: the trailer's entry, a reference or the dictionary itself.
_PDF_ENCRYPTED = re.compile(rb"/Encrypt\s*(?:[0-9]+\s+[0-9]+\s+R\b|<<)")
# [MS-PPT] 2.4.11: VbaInfoAtom with fHasMacros; 2.3.2: CurrentUserAtom with the token of an encrypted document.
_PPT_MACROS = re.compile(rb"\x02\x00\x00\x04\x0c\x00\x00\x00.{4}\x01\x00\x00\x00\x02\x00\x00\x00", re.DOTALL)
_PPT_ENCRYPTED = re.compile(rb"\xf6\x0f.{4}\x14\x00\x00\x00\xdf\xc4\xd1\xf3", re.DOTALL)

_STORAGE, _STREAM = 1, 2
_NAMES = {
    "_VBA_PROJECT": _STREAM,
    "_VBA_PROJECT_CUR": _STORAGE,
    "VBA": _STORAGE,
    "EncryptedPackage": _STREAM,
    "WordDocument": _STREAM,
    "Workbook": _STREAM,
    "Book": _STREAM,
    "PowerPoint Document": _STREAM,
}
_UPPER = {name.upper(): name for name in _NAMES}
_ENTRIES = re.compile(rb"(?i)(%s)\x00\x00" % b"|".join(re.escape(name.encode("utf-16-le")) for name in _NAMES))


class Look(NamedTuple):
    """``encrypted`` is how: "pdf", "office" or ""; ``asks`` says that oletools may know more about macros."""

    macros: bool = False
    encrypted: str = ""
    asks: bool = False


def look(content: bytes, names: Sequence[str], bounds: Bounds, depth: int = 1) -> Look:
    """What a document shows of itself; nothing for what is none. ``names`` are the file's."""
    if not is_document(content, names):
        return Look()
    detected = detect(content)
    if detected == PDF:
        return Look(encrypted="pdf" if _PDF_ENCRYPTED.search(content) else "")
    if detected == OLE:
        found = _ole(content)
    elif content.startswith(b"PK"):
        found = _package(content, bounds, depth)
    else:
        return Look(macros=bool(_TEXTS.search(content)))  # oletools takes every text for a macro
    return found._replace(asks=not found.macros and not found.encrypted and _is_oletools_there())


def _is_oletools_there() -> bool:
    import importlib.util

    return importlib.util.find_spec("oletools") is not None


def _ole(content: bytes) -> Look:
    """[MS-CFB] 2.6: by the directory's entries, of 128 bytes, wherever they stand: chains of sectors can be forged."""
    macros = encrypted = False
    for name, at in _entries(content):
        if "VBA" in name:
            macros = True
        elif name == "EncryptedPackage":
            encrypted = True  # [MS-OFFCRYPTO] 1.3.2
        elif name == "PowerPoint Document":
            macros = macros or bool(_PPT_MACROS.search(content))
            encrypted = encrypted or bool(_PPT_ENCRYPTED.search(content))
        else:
            first = struct.unpack_from("<I", content, at + 116)[0]
            start = (first + 1) << (12 if content[30:31] == b"\x0c" else 9)
            if name == "WordDocument":
                # [MS-DOC] 2.5.2: the FIB's mark, and fEncrypted.
                encrypted = encrypted or (content[start : start + 2] == b"\xec\xa5" and bool(content[start + 11] & 1))
            else:
                sheet, password = _workbook(content, start)
                macros, encrypted = macros or sheet, encrypted or password
    return Look(macros, "office" if encrypted else "")


def _entries(content: bytes) -> Iterator[tuple[str, int]]:
    """The entries that have one of the names, and where."""
    for found in _ENTRIES.finditer(content):
        at = found.start()
        name = _UPPER[found[1].decode("utf-16-le").upper()]
        # The header and all sectors are whole entries long, so each begins at a multiple of its size.
        if at % 128 == 0 and at + 128 <= len(content):
            size, kind = struct.unpack_from("<HB", content, at + 64)
            if size == 2 * len(name) + 2 and kind == _NAMES[name]:
                yield name, at


def _workbook(content: bytes, at: int) -> tuple[bool, bool]:
    """[MS-XLS] 2.4.28 and 2.4.117: whether there is a sheet of Excel 4.0's macros, and whether a password."""
    macros = False
    for _ in range(5000):
        if at + 10 > len(content):
            break
        record, size = struct.unpack_from("<HH", content, at)
        if record == 0x2F:
            return macros, True
        if record == 0x85 and content[at + 9] == 1:
            macros = True
        if record == 0x0A:
            break
        at += 4 + size
    return macros, False


def _package(content: bytes, bounds: Bounds, depth: int) -> Look:
    """ECMA-376 part 2, OpenDocument part 2: a zip file, in which what is there says what it is."""
    macros = encrypted = False
    for member in members(content, "application/zip", "", bounds, depth):
        path = member.path.replace("\\", "/").lower()
        base = path.rpartition("/")[2]
        encrypted = encrypted or member.encrypted
        if base == "vbaproject.bin" or "macrosheets/" in path or path.startswith(("basic/", "scripts/")):
            macros = True
        elif base == "[content_types].xml":
            macros = macros or bool(_CONTENT_TYPES.search(member.content.replace(b"\x00", b"")))  # or in UTF-16
        elif base == "manifest.xml":
            encrypted = encrypted or b"encryption-data" in member.content  # OpenDocument part 2 section 4.8.1
        elif not macros and depth < DEEPEST:
            macros = look(member.content, [path], bounds, depth + 1).macros
    return Look(macros, "office" if encrypted else "")


def ask(documents: Sequence[bytes], bounds: Bounds) -> tuple[list[bool], str]:
    """What oletools says of each, whether it has macros, in a limited child; and why it did not say all."""
    from deliver.content import limited

    seconds = max(min(bounds.left(), _SECONDS), _LEAST)
    sizes = [str(len(one)) for one in documents]
    answer, cut = limited.run("macros", sizes, b"".join(documents), seconds, len(documents), packages=True)
    failed = len(answer) < len(documents) or b"?" in answer
    has = [answer[index : index + 1] == b"1" for index in range(len(documents))]
    return has, f"oletools cannot tell whether a document has macros: {cut or 'it failed'}" if failed else ""


def main(sizes: Sequence[str]) -> None:
    """In the child: for each document on standard input a "1", a "0", or a "?" where oletools fails."""
    from oletools.olevba import FileOpenError, VBA_Parser  # type: ignore[import-untyped]

    from deliver.content.limited import confine

    confine(_SECONDS, _MEMORY, files=8)  # it imports codecs late
    for size in sizes:
        document = b""
        while len(document) < int(size) and (block := os.read(0, int(size) - len(document))):
            document += block
        try:
            answer = b"1" if VBA_Parser("document", data=document).detect_vba_macros() else b"0"
        except FileOpenError:
            answer = b"0"  # no kind of document that it knows
        except Exception:  # whatever a document makes of it
            answer = b"?"
        os.write(1, answer)
