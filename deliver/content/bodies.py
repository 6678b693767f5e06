"""The text of a message, as its reader sees it and as it was written: decoded, within bounds."""

from collections.abc import Iterable
from typing import NamedTuple

from deliver import headers
from deliver.content import mime

TEXT_CAP = 1024 * 1024
"""Bytes of text, decoded, that are read of one message: 150,000 words."""

# Where these begin or end, a new line does; all other tags stand within words.
_BLOCKS = frozenset(
    "address article aside blockquote body br center dd div dl dt fieldset footer form h1 h2 h3 h4 h5 h6 head header "
    "hr html li main nav ol option p pre section table tbody td tfoot th thead title tr ul".split()
)
_HIDDEN = ("script", "style")


class Body(NamedTuple):
    """``texts`` are the text parts in order, one of HTML twice: as it reads, and its source with the links.

    ``unread`` says why there is more than was read, "" where all was.
    """

    texts: tuple[str, ...]
    unread: str = ""


def read(chunks: Iterable[bytes]) -> Body:
    """The text parts that are not attachments, those of messages in the message among them. Never raises."""
    left = TEXT_CAP

    def keep(part: mime.Part) -> int:
        return left if _is_text(part) else 0

    texts: list[str] = []
    unread = ""
    for part in mime.parts(chunks, keep):
        if not part.type:
            unread = "its parts are too many or too deep"
        if not _is_text(part):
            continue
        if not part.complete:
            unread = f"only {TEXT_CAP // 1024} KiB of its text were read"
        if part.content:
            left -= len(part.content)
            text = headers.in_charset(part.content, part.parameters.get("charset", ""))
            texts += [readable(text), text] if part.type == "text/html" else [text]
    return Body(tuple(texts), unread)


def _is_text(part: mime.Part) -> bool:
    return part.type.startswith("text/") and part.disposition != "attachment"


def readable(source: str) -> str:
    """HTML without its tags, scripts, styles and comments, references resolved, no-break spaces as blanks.

    In time linear in the source.
    """
    import html

    first, *pieces = source.split("<")
    text = [first]
    until = ""  # what ends that which is not shown
    for piece in pieces:
        tag, closed, rest = piece.partition(">")
        if until == "-->":
            _, closed, rest = piece.partition(until)
            if closed:
                until = ""
                text.append(rest)
            continue
        name = tag[:12].split(None, 1)[0].lower().rstrip("/") if tag[:12].strip() else ""
        if until:
            if name != until:
                continue
            until = ""
        elif name in _HIDDEN:
            until = f"/{name}"
            continue
        if tag.startswith("!--"):
            _, closed, rest = piece[3:].partition("-->")
            until = "" if closed else "-->"
            text.append(rest)
            continue
        if not (tag[:1].isalpha() or tag[:1] in {"/", "!", "?"}) or not closed:
            text.append(f"<{piece}")  # "a < b"
            continue
        if name.lstrip("/") in _BLOCKS:
            text.append("\n")
        text.append(rest)
    return html.unescape("".join(text)).replace("\xa0", " ")
