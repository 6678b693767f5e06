"""The files that come with a message: attached, in archives and in messages in the message; and what is encrypted."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from deliver import mime
from deliver.archives import Bounds, kind_of, members
from deliver.filetypes import HEAD, detect, extension

ARCHIVE_CAP = 32 * 1024 * 1024
"""Bytes of one archive that are looked at, decoded."""

_TEXT_CAP = 64 * 1024  # of a text, to find a PGP message in it
_LAST = re.compile(r"[^/\\]*\Z")
_INLINE_PGP = re.compile(rb"(?m)^-----BEGIN PGP MESSAGE-----\s*$")
_ENVELOPED = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"  # 1.2.840.113549.1.7.3, DER (RFC 5652 section 6.1)
_AUTH_ENVELOPED = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17"  # RFC 5083 section 2.1
_SMIME = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})


class File(NamedTuple):
    """One file. ``names`` are all it gives itself, without directories and without what Windows ignores at the end.

    ``type`` is as declared, "" for a file in an archive; ``detected`` is by its first bytes. ``archive`` is the name of
    the outermost archive that holds it, "" where it is attached itself.
    """

    names: tuple[str, ...]
    type: str
    detected: str
    archive: str = ""
    encrypted: bool = False

    @property
    def extensions(self) -> frozenset[str]:
        """What follows the last dot of each name, in lower case."""
        return frozenset(filter(None, map(extension, self.names)))


class Attached(NamedTuple):
    """All files, and in which ways something is encrypted: "pgp", "smime", "zip".

    ``unread`` says why there may be more than was seen, "" where all was.
    """

    files: tuple[File, ...]
    encrypted: frozenset[str]
    unread: str = ""


def read(chunks: Iterable[bytes]) -> Attached:
    """Every part that is not the text to read, and the files in archives. Never raises."""
    bounds = Bounds()
    files: list[File] = []
    encrypted: set[str] = set()
    for part in mime.parts(chunks, _keep):
        if not part.type:
            bounds.exceed("its parts are too many or too deep")
            continue
        encrypted |= _ways(part)
        names = tuple(dict.fromkeys(filter(None, map(base_name, part.names))))
        if part.type in {"text/plain", "text/html"} and not names and part.disposition != "attachment":
            continue
        detected = detect(part.content[:HEAD])
        files.append(File(names, part.type, detected))
        kind = kind_of(part.content, names)
        if not kind:
            continue
        if not part.complete:
            bounds.exceed("an archive is too large")
        name = names[0] if names else "an archive"
        for member in members(part.content, kind, names[0] if names else "", bounds):
            base = base_name(member.path)
            files.append(File((base,) if base else (), "", member.detected, name, member.encrypted))
            if member.encrypted:
                encrypted.add("zip")
    return Attached(tuple(files), frozenset(encrypted), bounds.exceeded)


def base_name(path: str) -> str:
    """The last name of a path in either way of writing. Blanks and dots at its end go, as Windows ignores them."""
    found = _LAST.search(path)
    return found[0].strip().rstrip(". ") if found else ""


def _keep(part: mime.Part) -> int:
    if part.type.startswith("text/"):
        return _TEXT_CAP
    return ARCHIVE_CAP if part.content and kind_of(part.content, map(base_name, part.names)) else HEAD


def _ways(part: mime.Part) -> set[str]:
    ways = set()
    if part.type == "application/pgp-encrypted" or "multipart/encrypted" in part.inside:
        ways.add("pgp")
    if part.type.startswith("text/") and _INLINE_PGP.search(part.content):
        ways.add("pgp")
    if part.type in _SMIME:
        said = part.parameters.get("smime-type", "").lower()
        # RFC 8551 section 3.2.2; where the parameter is missing, the content's type stands at the front.
        front = b"" if said else part.content[:64]
        if said in {"enveloped-data", "authenveloped-data"} or _ENVELOPED in front or _AUTH_ENVELOPED in front:
            ways.add("smime")
    return ways
