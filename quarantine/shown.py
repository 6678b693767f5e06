"""What `quarantine show` says of a message, with nothing in it that a terminal obeys."""

import itertools
import json
import re
import time
from collections.abc import Iterator

from deliver import headers
from deliver.content import mime
from deliver.content.bodies import readable
from quarantine.store import Archive, Held

_HEADER_CAP = 64 * 1024  # bytes
_TEXT_CAP = 64 * 1024  # bytes of each text
_LINES = 60
_NEXT_FIELD = re.compile(rb"\r?\n(?![ \t])")


def explained(held: Held, archive: Archive) -> Iterator[str]:
    """Why it is held, its header, which files it has, and its text. KeyError where the message is gone, OSError."""
    yield f"id         {held.id}\nrecipient  {safe(held.recipient)}\nsender     {safe(held.sender or '<>')}"
    yield f"held       {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(held.time))}, {held.size} bytes"
    yield f"going to   {safe(held.folder)} of {safe(held.maildir)}\nreason     {safe(held.reason)}"
    for verdict in held.verdicts:
        yield f"scanner    {safe(json.dumps(verdict))}"
    watch = _Header()
    parts = list(mime.parts(archive.chunks(held), _keep, watch))
    for part in parts:
        for name in part.names[:1]:
            yield f"file       {safe(name)} ({safe(part.type)})"
    yield ""
    for field in _NEXT_FIELD.split(watch.block):
        key, colon, value = field.partition(b":")
        yield f"{safe(key.decode('latin-1'))}{colon.decode()} {safe(headers.decode(value).expandtabs(1))}".rstrip()
    yield ""
    text = "\n".join(_texts(parts))
    yield from map(safe, itertools.islice(text.expandtabs().splitlines(), _LINES))


class _Header(mime.Watch):
    """Keeps the message's own."""

    block = b""

    def header(self, _part: mime.Part, block: bytes) -> None:
        """See mime.Watch."""
        self.block = self.block or block[:_HEADER_CAP].removesuffix(b"\r")


def _keep(part: mime.Part) -> int:
    return _TEXT_CAP if part.type in ("text/plain", "text/html") and part.disposition != "attachment" else 0


def _texts(parts: list[mime.Part]) -> Iterator[str]:
    """The plain texts; where there is none, what HTML reads like."""
    kind = "text/plain" if any(part.content.strip() for part in parts if part.type == "text/plain") else "text/html"
    for part in parts:
        if part.type == kind and part.content:
            text = headers.in_charset(part.content, part.parameters.get("charset", ""))
            yield readable(text) if kind == "text/html" else text


def safe(text: str) -> str:
    """Without control characters: a Subject may try to write to the terminal, or turn what follows around."""
    return _UNSAFE.sub("?", text)


_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
