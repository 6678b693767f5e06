"""What a file's name tells about the file, and what it tries to hide (how Windows and mail programs read names)."""

import re

from deliver.filetypes import extension

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
