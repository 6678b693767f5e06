"""The files that come with a message: attached, in archives and in messages in the message; and what is encrypted."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from deliver.content import mime
from deliver.content.bounds import DEEPEST, Bounds
from deliver.content.filenames import invented
from deliver.content.filetypes import (
    BINHEX,
    HEAD,
    TNEF,
    detect,
    extension,
    is_document,
    is_encoding,
    is_letter,
    is_signed,
    kind_of,
    worth_all,
)

ARCHIVE_CAP = 32 * 1024 * 1024
"""Bytes of one part that are looked at, decoded."""

_TEXT_CAP = 64 * 1024  # of a text, to find a PGP message at its front
_DOCUMENTS_ASKED = 32 * 1024 * 1024  # bytes, all together, that oletools gets
_INLINE_PGP = re.compile(rb"(?m)^-----BEGIN PGP MESSAGE-----\s*$")
_ENVELOPED = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03"  # 1.2.840.113549.1.7.3, DER (RFC 5652 section 6.1)
_AUTH_ENVELOPED = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17"  # RFC 5083 section 2.1
_SMIME = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_WAYS = {"application/x-7z-compressed": "7z", "application/vnd.rar": "rar"}


class File(NamedTuple):
    """One file. ``names`` are all it gives itself, without directories and without what Windows ignores at the end.

    ``type`` is as declared, "" for a file in an archive; ``detected`` is by its first bytes. ``archive`` is the name of
    the outermost file that holds it (an archive, a message, winmail.dat), "" where it is attached itself; ``path`` is
    its whole way in that, through all that is packed into each other: "inner.zip/docs/letter.doc". ``encrypted``: what
    it holds, and perhaps its name, cannot be read without a password. ``macros``: it is a document with macros.
    """

    names: tuple[str, ...]
    type: str
    detected: str
    archive: str = ""
    encrypted: bool = False
    path: str = ""
    macros: bool = False

    @property
    def extensions(self) -> frozenset[str]:
        """What follows the last dot of each name, in lower case."""
        return frozenset(filter(None, map(extension, self.names)))


class Attached(NamedTuple):
    """All files, and in which ways something is encrypted: "pgp", "smime", "zip", "7z", "rar", "pdf", "office".

    ``unread`` says why there may be more than was seen, "" where all was; ``untold`` why a document may have macros all
    the same, "" where that is known.
    """

    files: tuple[File, ...]
    encrypted: frozenset[str]
    unread: str = ""
    untold: str = ""


class _Found(NamedTuple):
    """A file or a text, with what it holds; and in which ways it is encrypted."""

    file: File
    content: bytes
    ways: frozenset[str] = frozenset()
    is_text: bool = False
    asks: bool = False  # oletools may know more


def read(chunks: Iterable[bytes]) -> Attached:
    """Every part that is not the text to read, and the files in archives. Never raises."""
    bounds = Bounds()
    files: list[File] = []
    encrypted: set[str] = set()
    asked: dict[int, bytes] = {}
    untold = ""
    size = 0
    for found in _walk(chunks, bounds):
        encrypted |= found.ways
        if found.is_text:
            continue
        if found.asks and (size := size + len(found.content)) <= _DOCUMENTS_ASKED:
            asked[len(files)] = found.content
        files.append(found.file)
    if size > _DOCUMENTS_ASKED:
        untold = "documents are too large for oletools"
    if asked:
        from deliver.content import macros

        answers, failed = macros.ask(list(asked.values()), bounds)
        untold = failed or untold
        for index, has in zip(asked, answers, strict=True):
            files[index] = files[index]._replace(macros=has)
    return Attached(tuple(files), frozenset(encrypted), bounds.exceeded, untold)


def contents(chunks: Iterable[bytes], bounds: Bounds | None = None) -> Iterator[tuple[str, bytes]]:
    """The name (or type) and all that it holds, of each part and of each file in archives, as far as they are read.

    Texts, too. Memory holds one part and what it is unpacked to. What was left out ``bounds.exceeded`` says afterwards.
    Never raises.
    """
    bounds = bounds or Bounds()
    bounds.whole = True
    for found in _walk(chunks, bounds):
        if found.content:
            file = found.file
            name = "/".join(filter(None, (file.archive, file.path or "".join(file.names[:1]))))
            yield name or file.type, found.content


def _walk(chunks: Iterable[bytes], bounds: Bounds, around: tuple[str, ...] = ()) -> Iterator[_Found]:
    """All that is in a message. ``around`` are the names of the files in each other that this message is in."""

    def keep(part: mime.Part) -> int:
        return ARCHIVE_CAP if bounds.whole else _keep(part)

    for part in mime.parts(chunks, keep):
        if not part.type:
            bounds.exceed("its parts are too many or too deep")
            continue
        names = tuple(dict.fromkeys(filter(None, map(base_name, part.names or (invented(part.type),)))))
        is_text, is_uuencoded = _is_text(part), part.encoding in mime.UUENCODED
        if not part.complete:
            if is_text and part.type == "text/plain" and not bounds.whole:
                bounds.exceed("a text is too large to look for files in it")
            elif bounds.whole or is_uuencoded or (not is_text and worth_all(part.content[:HEAD], names)):
                bounds.exceed("an archive or a document is too large")
        if not is_text:
            decoded = False
            if is_uuencoded:
                from deliver.content import enclosed

                for name, content in enclosed.files(part.content, bounds):
                    decoded = True
                    inner = _enclosed(name, content)
                    both = tuple(dict.fromkeys((*names, *inner.names)))
                    yield from _file(inner._replace(names=both, type=part.type), content, bounds, around)
            if not decoded:
                file = File(names, part.type, detect(part.content[:HEAD]))
                yield from _file(file, part.content, bounds, around, _ways(part))
            continue
        where = "/".join((*around[1:], part.type)) if around else ""
        yield _Found(File((), part.type, "", "".join(around[:1]), path=where), part.content, _ways(part), is_text=True)
        if b"begin" in part.content or b"BinHex" in part.content:
            from deliver.content import enclosed

            for name, content in enclosed.files(part.content, bounds):
                yield from _file(_enclosed(name, content), content, bounds, around)


def _file(
    file: File,
    content: bytes,
    bounds: Bounds,
    around: tuple[str, ...],
    ways: frozenset[str] = frozenset(),
) -> Iterator[_Found]:
    """A file as it is known so far, and those that are in it. ``around`` are the names of the files that it is in."""
    if bounds.files <= 0:
        bounds.exceed("there are too many files")
        return
    bounds.files -= 1
    if around:
        file = file._replace(archive=around[0], path="/".join((*around[1:], *file.names[:1])))
    yield _looked(file, content, bounds, ways)
    here = (*around, file.names[0] if file.names else "an archive")
    if kind := kind_of(content, file.names):
        from deliver.content.archives import members

        for member in members(content, kind, "".join(file.names[:1]), bounds, len(here)):
            base = base_name(member.path)
            path = "/".join((*here[1:], *member.inside, member.path))
            inner = File((base,) if base else (), "", member.detected, here[0], member.encrypted, path)
            locked = frozenset({_WAYS.get(member.kind, "zip")} if member.encrypted else ())
            yield _looked(inner, member.content, bounds, locked)
            yield from _inside(inner, member.content, bounds, (*here, *member.inside, member.path))
    else:
        yield from _inside(file, content, bounds, here)


def _looked(file: File, content: bytes, bounds: Bounds, ways: frozenset[str]) -> _Found:
    """A file with what a document shows of itself."""
    if bounds.whole or not is_document(content, file.names):
        return _Found(file, content, ways)
    from deliver.content import macros

    look = macros.look(content, file.names, bounds)
    file = file._replace(encrypted=file.encrypted or bool(look.encrypted), macros=look.macros)
    return _Found(file, content, ways | {look.encrypted} - {""}, asks=look.asks)


def _inside(file: File, content: bytes, bounds: Bounds, around: tuple[str, ...]) -> Iterator[_Found]:
    """The files in one that is no archive: a message, as it is or signed, Outlook's wrapper, or a file as text."""
    is_wrapper, signed, is_encoded = file.detected == TNEF, is_signed(content), is_encoding(content, file.names)
    is_message = is_letter(file.names) and not file.type.startswith("message/")
    if not (is_wrapper or signed or is_encoded or is_message):
        return
    if len(around) > DEEPEST:
        bounds.exceed("archives lie too deep in each other")
    elif is_encoded:
        from deliver.content import enclosed

        found = False
        for name, inner in enclosed.files(content, bounds):
            found = True
            yield from _file(_enclosed(name, inner), inner, bounds, around)
        if file.detected == BINHEX and not found:
            bounds.exceed("an archive cannot be read: nothing was found in it")
    elif is_wrapper:
        from deliver.content import tnef

        for name, inner in tnef.files(content):
            yield from _file(_enclosed(name, inner), inner, bounds, around)
    elif signed:
        from deliver.content.signed import content as what_is_signed

        yield from _walk(mime.pieces(what_is_signed(content)), bounds, around)
    else:  # mail programs pass over empty lines at its front
        yield from _walk(mime.pieces(content.lstrip(b"\r\n")), bounds, around)


def _enclosed(name: str, content: bytes) -> File:
    base = base_name(name)
    return File((base,) if base else (), "", detect(content[:HEAD]))


def base_name(path: str) -> str:
    """The last name of a path in either way of writing. Blanks and dots at its end go, as Windows ignores them."""
    path = path.rstrip("/\\. ")
    return path[max(path.rfind("/"), path.rfind("\\")) + 1 :].strip().rstrip(". ")


def _is_text(part: mime.Part) -> bool:
    """Whether it is the text to read, or one of them."""
    return part.type in {"text/plain", "text/html"} and part.disposition != "attachment" and not any(part.names)


def _keep(part: mime.Part) -> int:
    if (_is_text(part) and part.type == "text/plain") or part.encoding in mime.UUENCODED:
        return ARCHIVE_CAP
    first = _TEXT_CAP if part.type.startswith("text/") else HEAD
    if not part.content:
        return first
    names = [base_name(name) for name in part.names]
    worth = is_encoding(part.content, names) if _is_text(part) else worth_all(part.content, names)
    return ARCHIVE_CAP if worth else first


def _ways(part: mime.Part) -> frozenset[str]:
    ways = set()
    if part.type == "application/pgp-encrypted" or "multipart/encrypted" in part.inside:
        ways.add("pgp")
    if part.type.startswith("text/") and _INLINE_PGP.search(part.content[:_TEXT_CAP]):
        ways.add("pgp")
    if part.type in _SMIME:
        said = part.parameters.get("smime-type", "").lower()
        # RFC 8551 section 3.2.2; where the parameter is missing, the content's type stands at the front.
        front = b"" if said else part.content[:64]
        if said in {"enveloped-data", "authenveloped-data"} or _ENVELOPED in front or _AUTH_ENVELOPED in front:
            ways.add("smime")
    return frozenset(ways)
