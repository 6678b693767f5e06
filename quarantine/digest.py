"""What was held since the last time, for each recipient in one letter: never a message's text, only what it is.

Up to when each recipient has been told is remembered beside the messages, in `digest`, a JSON object a line; the last
one for a recipient counts. A crash between sending and remembering sends a digest twice.
"""

import fcntl
import html
import json
import os
import re
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from deliver import letters
from deliver.rules.placeholders import printable
from quarantine.sqlite import Index, Row, Search
from quarantine.store import Archive

MOST_LISTED = 200
"""Messages in one digest; of more only the number is said, and the newest are listed."""

SETTLED = 120.0
"""Seconds after which a message is surely held: its time is taken before it is written."""

_FILE_CAP = 1024 * 1024  # bytes; then the memory is written anew
_LONGEST_SUBJECT = 200  # characters
ADDRESS = re.compile(r"[!-?A-~]{1,64}@[!-?A-~]{1,255}")
_FILE = "digest"


class Busy(Exception):
    """Another digest is at work on this quarantine."""


class Digest(NamedTuple):
    """What one recipient is to be told: the newest ``rows``, oldest first, and how many ``more`` there are.

    ``upto`` is in seconds since the epoch; what is held later comes with the next one.
    """

    recipient: str
    rows: list[Row]
    more: int
    upto: float

    @property
    def sendable(self) -> bool:
        """Whether the recipient is an address that mail can be sent to."""
        return bool(ADDRESS.fullmatch(self.recipient))


class Words(NamedTuple):
    """What a digest says besides: from whom it is, whom to ``ask`` for a release ("": the command).

    ``keep`` are the shortest and the longest time, in seconds, for which the recipient's mail is held.
    """

    sender: str
    ask: str
    keep: tuple[float, float]


class Memory:
    """Up to when each recipient has been told. Raises OSError."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._file = os.open(_FILE, flags, 0o600, dir_fd=directory)
        self._upto: dict[str, float] = {}
        with open(self._file, "rb", closefd=False) as file:
            for line in file:
                try:
                    one = json.loads(line)
                    self._upto[str(one["recipient"])] = float(one["upto"])
                except (ValueError, TypeError, KeyError):  # a crash cut it
                    continue

    def upto(self, recipient: str) -> float:
        """Seconds since the epoch; 0 for one who has had no digest yet."""
        return self._upto.get(recipient, 0.0)

    def remember(self, recipient: str, upto: float) -> None:
        """The recipient has been told; durable on return."""
        self._upto[recipient] = upto
        # A line that a crash has cut must not swallow this one.
        os.write(self._file, b"\n" + _line(recipient, upto))
        os.fsync(self._file)

    def close(self) -> None:
        """Write the file anew where it has grown long."""
        try:
            if os.fstat(self._file).st_size > _FILE_CAP:
                self._shorten()
        finally:
            os.close(self._file)

    def _shorten(self) -> None:
        new = f"{_FILE}.new"  # one at a time is at work
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=self._directory)
        with open(fd, "wb") as file:
            file.writelines(_line(*one) for one in self._upto.items())
            file.flush()
            os.fsync(fd)
        os.rename(new, _FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)


def _line(recipient: str, upto: float) -> bytes:
    return json.dumps({"recipient": recipient, "upto": upto}).encode() + b"\n"


@contextmanager
def memory(archive: Archive) -> Iterator[Memory]:
    """The memory of a quarantine, for one process at a time. Raises Busy, OSError."""
    directory = os.open(archive.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("another digest is at work there") from None
        found = Memory(directory)
        try:
            yield found
        finally:
            found.close()
    finally:
        os.close(directory)


def due(index: Index, known: Memory, now: float, recipient: str = "") -> list[Digest]:
    """The digests that are due, by recipient; only for recipients that a glob fits. ``index`` is up to date."""
    rows: dict[str, list[Row]] = {}
    more: dict[str, int] = {}
    upto = now - SETTLED
    for row in index.search(Search(recipient=recipient), now):
        if not known.upto(row.recipient) < row.time <= upto:
            continue
        mine = rows.setdefault(row.recipient, [])
        mine.append(row)
        if len(mine) > MOST_LISTED:
            del mine[0]
            more[row.recipient] = more.get(row.recipient, 0) + 1
    return [Digest(recipient, rows[recipient], more.get(recipient, 0), upto) for recipient in sorted(rows)]


def compose(digest: Digest, words: Words, now: float) -> bytes:
    """The letter, marked as a program's (RFC 3834 section 5)."""
    number = len(digest.rows) + digest.more
    subject = f"{number} {'message is' if number == 1 else 'messages are'} held in quarantine"
    more = b"Auto-Submitted: auto-generated\nPrecedence: bulk\n"
    return letters.letter(words.sender, digest.recipient, subject, text(digest, words), _html(digest, words), now, more)


def text(digest: Digest, words: Words) -> str:
    """The digest as plain text."""
    lines = [_first_line(digest), ""]
    for row in digest.rows:
        when, sender, subject, reason = _safe(row)
        lines += [f"{when}  {sender}", f"    {subject}", f"    {reason}", f"    id {row.id}", ""]
    lines += [_more(digest)] if digest.more else []
    ask = f"write to {words.ask} and name its id" if words.ask else "run `quarantine release` with its id"
    lines += [f"To have one delivered, {ask}.", _kept(words)]
    return "\n".join(lines) + "\n"


def _html(digest: Digest, words: Words) -> str:
    rows = []
    for row in digest.rows:
        cells = [html.escape(cell) for cell in _safe(row)]
        release = f"<code>quarantine release {html.escape(row.id)}</code>"
        if words.ask:
            query = urllib.parse.quote(f"release {row.id}")
            link = f"mailto:{urllib.parse.quote(words.ask, safe='@')}?subject={query}"
            release = f'<a href="{html.escape(link)}">ask for it</a>'
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (*cells, release)) + "</tr>")
    return "\n".join(
        [
            f"<!DOCTYPE html>\n<html><body>\n<p>{html.escape(_first_line(digest))}</p>\n<table>",
            "<tr><th>Held</th><th>From</th><th>Subject</th><th>Why</th><th></th></tr>",
            *rows,
            f"</table>\n<p>{html.escape(_more(digest))}</p>" if digest.more else "</table>",
            f"<p>{html.escape(_kept(words))}</p>\n</body></html>\n",
        ]
    )


def _first_line(digest: Digest) -> str:
    number = len(digest.rows) + digest.more
    return f"Held for {printable(digest.recipient)} since the last such letter: {number}."


def _more(digest: Digest) -> str:
    return f"{digest.more} older ones are not listed."


def _kept(words: Words) -> str:
    days = " to ".join(dict.fromkeys(f"{span / 86400:g}" for span in words.keep))
    return f"Held mail is deleted after some {days} days."


def _safe(row: Row) -> tuple[str, str, str, str]:
    """What strangers have written, on one line each and without what a program obeys."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.time))
    subject = printable(row.subject)[:_LONGEST_SUBJECT] or "(no subject)"
    return when, printable(row.sender) or "<>", subject, printable(row.reason)
