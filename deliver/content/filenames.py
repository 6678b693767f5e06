"""What a file's name tells about the file, and what it tries to hide (how Windows and mail programs read names)."""

import re
from collections.abc import Iterator

from deliver.content.filetypes import extension

LONGEST = 256
"""Characters; no file system takes a longer name, and qmail-scanner has the same limit."""

PROGRAMS = frozenset(
    "ade adp app appx appxbundle bas bat chm cmd com cpl diagcab dll exe hta inf ins isp jar js jse ksh lib lnk mde"
    " msc msi msix msp mst nsh ocx pif ps1 ps1xml ps2 psc1 psc2 reg scf scr sct shb shs sys vb vbe vbs vxd wsc wsf wsh"
    " xll".split()
)
"""Extensions of what runs when somebody opens it under Windows."""

DOCUMENTS = frozenset(
    "avi bmp csv doc docx eml gif htm html jpeg jpg mov mp3 mp4 mpeg mpg odp ods odt pdf png pps ppsx ppt pptx rtf tif"
    " tiff txt wav webp xls xlsx xml zip".split()
)
"""Extensions of what does not run."""

_CLSID = re.compile(r"\.\{[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}")
_WIDE_GAP = re.compile(r"\S\s{5,}\.[^.\s]+\Z")
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_ODD = re.compile(r"[^!-~]|[\"'<>:|?*;]")
_ENDS = re.compile("[\0\ufffd:;]")
_DROPPED = frozenset(" \"'<>|?*\ufffd")
_OF_TYPES = {
    **dict.fromkeys(
        "application/x-msdownload application/x-msdos-program application/x-ms-dos-executable application/x-dosexec"
        " application/vnd.microsoft.portable-executable application/exe application/x-exe application/x-winexe".split(),
        "exe",
    ),
    **dict.fromkeys(("application/zip", "application/x-zip", "application/x-zip-compressed"), "zip"),
}


def readings(name: str) -> Iterator[str]:
    """The name, and what programs take it for that stop at what ends a name, or leave out what none may have.

    A NUL ends a name in C (headers.decode writes U+FFFD for it), a colon under Windows, where the name of a stream
    follows, a semicolon on a CD, where a version does (ECMA-119 section 7.5.1). Unseen characters, blanks, quotes and
    brackets are left out; Windows' own code pages make letters of wide ones (U+FF45 of "e").
    """
    yield name
    if not _ODD.search(name):
        return
    yield _ENDS.split(name, maxsplit=1)[0].rstrip(". ")
    if not name.isascii():
        import unicodedata

        name = unicodedata.normalize("NFKC", name)
    yield "".join(character for character in name if character.isprintable() and character not in _DROPPED)


def invented(kind: str) -> str:
    """The name that mail programs make up for a file of this declared type that has none; "" for types of no matter."""
    return f"unnamed.{_OF_TYPES[kind]}" if kind in _OF_TYPES else ""


def is_program(name: str) -> bool:
    """Whether what is called so runs when it is opened."""
    return extension(name) in PROGRAMS


def has_double_extension(name: str) -> bool:
    """Whether the name of a program looks like that of a document.

    "invoice.pdf.exe", "invoice.pdf      .exe", or one with a character in it (U+202E and its like) that has what
    follows shown backwards, so that "fdp.exe" reads "exe.pdf".
    """
    if not is_program(name):
        return False
    stem = name.rpartition(".")[0].rstrip()
    return extension(stem) in DOCUMENTS or bool(_WIDE_GAP.search(name) or _DIRECTION.search(name))


def has_clsid(name: str) -> bool:
    """Whether a class of Windows stands where an extension should: "invoice.txt.{3050F4D8-98B5-11CF-BB82-...}".

    Explorer does not show it, and opens the file as that class says.
    """
    return bool(_CLSID.search(name))
