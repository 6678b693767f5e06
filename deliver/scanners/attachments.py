"""What comes with a message, and how it is written: names, types, encryption, macros, more than one way to read it.

It finds nothing bad, only what a site may not want; what is done then, policy says.
"""

import asyncio
import fnmatch
import re
import sys
from collections.abc import Iterable, Iterator

from deliver.content import ambiguity, attachments, filenames
from deliver.content.filetypes import extension
from deliver.values import Content, Envelope, Finding, Objection, Verdict

MOST = 10
"""Objections of one kind that are told of one message."""

_LONGEST_TEXT = 150  # characters
_MAILS_OWN = frozenset({"pgp", "smime"})  # encrypted between people (RFC 3156, RFC 8551): no archive, and no policy's

# What runs when it is opened, by its first bytes, whatever it is called.
_PROGRAMS = frozenset(
    "application/vnd.microsoft.portable-executable application/x-elf application/x-mach-binary"
    " application/x-ms-shortcut application/vnd.ms-htmlhelp".split()
)
_DOCUMENTS = ("text/", "image/", "audio/", "video/", "font/", "application/pdf", "application/msword")


class Attached:
    """The scanner of [attachments].

    ``forbidden`` are globs of file names ("*" and "?", in any case), asked of names and of whole paths in archives;
    ``tricks`` are "double-extension", "clsid", "too-long" and "disguised"; ``types`` are globs of detected types.
    """

    name = "attachments"
    max_size = sys.maxsize  # what is too much to unpack, it says itself

    def __init__(self, forbidden: Iterable[str], tricks: Iterable[str], types: Iterable[str]) -> None:
        self._forbidden = [_compiled(glob) for glob in forbidden]
        self._tricks = frozenset(tricks)
        self._types = [_compiled(glob) for glob in types]

    async def scan(self, content: Content, _envelope: Envelope) -> Verdict:
        """Return CLEAN, or POLICY with objections; raises OSError where the message cannot be read."""
        return await asyncio.to_thread(self._look, content)

    def _look(self, content: Content) -> Verdict:
        # A text that stands twice tells nothing new; the order is that of the message.
        found = dict.fromkeys(Objection(kind, _line(text)) for kind, text in self._objections(content))
        kinds: dict[str, list[Objection]] = {}
        for objection in found:
            kinds.setdefault(objection.kind, []).append(objection)
        told = tuple(objection for several in kinds.values() for objection in several[:MOST])
        return Verdict(self.name, Finding.POLICY if told else Finding.CLEAN, objections=told)

    def _objections(self, content: Content) -> Iterator[tuple[str, str]]:
        said = attachments.read(content.chunks())
        for file in said.files:
            yield from (("forbidden", text) for text in self._forbids(file))
        named = False
        for file in said.files:
            if file.encrypted:
                named = True
                yield "encrypted", file.archive or _name(file)
        if not named:
            yield from (("encrypted", way) for way in sorted(said.encrypted - _MAILS_OWN))
        yield from (("macro", _name(file)) for file in said.files if file.macros)
        if said.untold:
            yield "macro", said.untold
        yield from (("ambiguous", why) for why in ambiguity.find(content.chunks()))
        if said.unread:
            yield "too-big", said.unread

    def _forbids(self, file: attachments.File) -> Iterator[str]:
        names = [*file.names, file.path] if file.path else list(file.names)
        yield from (name for name in file.names if "too-long" in self._tricks and len(name) > filenames.LONGEST)
        for name in names:
            if any(glob.match(one) for one in filenames.readings(name) for glob in self._forbidden):
                yield attachments.base_name(name) or name
        for name in file.names:
            if "double-extension" in self._tricks and filenames.has_double_extension(name):
                yield f"{name}: double extension"
            if "clsid" in self._tricks and filenames.has_clsid(name):
                yield f"{name}: CLSID"
        if "disguised" in self._tricks and _disguised(file):
            yield f"{_name(file)}: a program in disguise"
        if file.detected and any(glob.match(file.detected) for glob in self._types):
            yield f"{_name(file)}: {file.detected}"


def _compiled(glob: str) -> "re.Pattern[str]":
    # fnmatch's patterns do not go back (bpo-40480), so that time is no more than pattern times name. Brackets are
    # nothing special in ours.
    return re.compile(fnmatch.translate(glob.replace("[", "[[]")), re.IGNORECASE)


def _disguised(file: attachments.File) -> bool:
    """A program that calls itself a document, by its name or by the type that it declares."""
    if file.detected not in _PROGRAMS or any(map(filenames.is_program, file.names)):
        return False
    return file.type.startswith(_DOCUMENTS) or any(extension(name) in filenames.DOCUMENTS for name in file.names)


def _name(file: attachments.File) -> str:
    return file.names[0] if file.names else file.archive or "a file without a name"


def _line(text: str) -> str:
    """Printable, on one line, and not too long; the end stays, since it says what a file is."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= _LONGEST_TEXT else f"{shown[: _LONGEST_TEXT - 43]}...{shown[-40:]}"
