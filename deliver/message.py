"""One message: read once from the MTA, held without growing in memory, given out as it will be scanned and stored.

The bytes are never parsed and written again: what is stored is what came, minus the framing that programs put on top,
minus header lines that forge ours, with LF line ends where every line came with CRLF.
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from deliver import header_lines
from deliver.errors import Deferred
from deliver.values import Edits

CHUNK = 256 * 1024
"""Bytes moved at a time: a pipe holds 64 KiB, a disk likes more, and fifty messages in work must stay small."""

IN_MEMORY = 256 * 1024
"""Up to this size a message from a pipe is kept in memory; a larger one is spooled to disk."""

HEADER_CAP = 1024 * 1024
"""How much of a header rules see and forged lines are looked for in; real headers stay below 250 KB."""

_FRAMING = re.compile(
    rb"(?:(?-i:From ).*(?:\n|\Z))?"
    rb"((?:(?:return-path|delivered-to|x-original-to|envelope-to|delivery-date)[ \t]*:"
    rb".*(?:\n|\Z)(?:[ \t].*(?:\n|\Z))*)*)",
    re.IGNORECASE,
)
_FIELD = re.compile(rb"(?m)^([!-9;-~]+)[ \t]*:((?:.*(?:\n|\Z))(?:[ \t].*(?:\n|\Z))*)")
_PIECE = re.compile(rb"\\.|[();\\]|[^();\\]+", re.DOTALL)
_LINE = 78
"""Characters of a header line that should not be exceeded (RFC 5322 section 2.1.1)."""
_ADDRESS = re.compile(rb"<([^<>]*)>")


class Source:
    """The raw bytes from the MTA: in memory, or behind a descriptor that can be read at any offset.

    ``head`` are the first HEADER_CAP bytes, ``size`` is in bytes, ``lf`` and ``crlf`` count line ends.
    """

    def __init__(self) -> None:
        self.size = 0
        self.lf = 0
        self.crlf = 0
        self._start = 0
        self._fd = -1
        self._kept = bytearray()
        self._head = bytearray()
        self._cr = False
        self._spooled = False

    @property
    def head(self) -> bytes:
        """The first HEADER_CAP bytes."""
        return bytes(self._head)

    @classmethod
    def read(cls, fd: int, spool: Callable[[], int], patience: float | None = None) -> "Source":
        """Take everything that ``fd`` gives, to its end, waiting at most ``patience`` seconds for each piece.

        A regular file is read in place, from its current offset (qmail-command(8): the message starts there); of
        anything else more than IN_MEMORY goes to the descriptor that ``spool`` opens. Raises Deferred.
        """
        source = cls()
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                source._read_file(fd)
            else:
                source._read_stream(fd, spool, patience)
        except OSError as error:
            raise Deferred(f"cannot read the message: {error}", "4.3.0 Unable to read message") from error
        return source

    @classmethod
    def of(cls, content: bytes) -> "Source":
        """A message that is in memory already."""
        source = cls()
        source._kept = bytearray(content)
        source._look(content)
        return source

    @classmethod
    def spooled(cls, fd: int) -> "Source":
        """A message that lies in a regular file, from its first byte on. The descriptor stays the caller's."""
        source = cls()
        source._read_file(fd, 0)
        return source

    def _read_file(self, fd: int, start: int | None = None) -> None:
        self._fd = fd
        self._start = os.lseek(fd, 0, os.SEEK_CUR) if start is None else start
        while chunk := os.pread(fd, CHUNK, self._start + self.size):
            self._look(chunk)

    def _read_stream(self, fd: int, spool: Callable[[], int], patience: float | None) -> None:
        for chunk in _stream(fd, patience):
            self.add(chunk, spool)

    def add(self, chunk: bytes, spool: Callable[[], int]) -> None:
        """Append to what was read so far; beyond IN_MEMORY it goes to the descriptor that ``spool`` opens, then ours.

        Raises OSError, or what ``spool`` raises.
        """
        self._look(chunk)
        if self._fd < 0 and self.size <= IN_MEMORY:
            self._kept += chunk
            return
        if self._fd < 0:
            self._fd = spool()
            self._spooled = True
            _write_all(self._fd, self._kept)
            self._kept = bytearray()
        _write_all(self._fd, chunk)

    def close(self) -> None:
        """Close the spool; what was read in place belongs to others."""
        if self._spooled:
            os.close(self._fd)
            self._spooled = False

    def _look(self, chunk: bytes) -> None:
        if self._cr and chunk.startswith(b"\n"):
            self.crlf += 1
        self._cr = chunk.endswith(b"\r")
        self.crlf += chunk.count(b"\r\n")
        self.lf += chunk.count(b"\n")
        self.size += len(chunk)
        if len(self._head) < HEADER_CAP:
            self._head += chunk[: HEADER_CAP - len(self._head)]

    def at(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset`` on; raises Deferred where bytes that were there are gone."""
        if self._fd < 0:
            return bytes(self._kept[offset : offset + length])
        try:
            chunk = os.pread(self._fd, length, self._start + offset)
        except OSError as error:
            raise Deferred(f"cannot read the message again: {error}", "4.3.0 Unable to read message") from error
        if not chunk and length:
            raise Deferred("the message became shorter while it was read", "4.3.0 Unable to read message")
        return chunk


def _stream(fd: int, patience: float | None = None) -> Iterator[bytes]:
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    while True:
        if patience is not None and not waiting.poll(patience * 1000):
            raise OSError(errno.ETIMEDOUT, "nothing came")
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:  # qmail opens with O_NDELAY, and a pipe may have inherited that
            waiting.poll()
            continue
        if not chunk:
            return
        yield chunk


def _write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def drain(fd: int) -> None:
    """Read ``fd`` to its end and forget it: preline(1) reports a broken pipe whatever we answered."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            for _ in _stream(fd):
                pass


class Framing(NamedTuple):
    """What preline, Postfix, Exim and getmail put on top of a message. ``length`` is in bytes, the From_ line included.

    ``return_path`` is the first such line, b"" if there is none; ``delivered_to`` and ``others`` are whole lines.
    """

    length: int = 0
    return_path: bytes = b""
    delivered_to: bytes = b""
    others: bytes = b""

    @property
    def sender(self) -> str | None:
        """The envelope sender in the Return-Path line; None where there is no such line."""
        if not self.return_path:
            return None
        value = self.return_path.partition(b":")[2].strip()
        found = _ADDRESS.search(value)
        return (found[1] if found else value).decode("utf-8", "surrogateescape")


def read_framing(head: bytes) -> Framing:
    """The optional From_ line and the unbroken run of delivery lines at the very top of ``head``."""
    found = _FRAMING.match(head)
    if found is None:
        return Framing()
    kinds: dict[bytes, list[bytes]] = {b"return-path": [], b"delivered-to": [], b"others": []}
    for field in _FIELD.finditer(found[1]):
        kinds.get(field[1].lower(), kinds[b"others"]).append(_unix(field[0]))
    return Framing(
        found.end(), b"".join(kinds[b"return-path"][:1]), b"".join(kinds[b"delivered-to"]), b"".join(kinds[b"others"])
    )


def _unix(line: bytes) -> bytes:
    line = line.replace(b"\r\n", b"\n")
    return line if line.endswith(b"\n") else line + b"\n"


class Forgeries(NamedTuple):
    """Header fields of a stranger that would pass for ours. Names and prefixes are lower case."""

    names: frozenset[bytes] = frozenset()
    prefixes: tuple[bytes, ...] = ()
    authserv_id: bytes = b""

    def forged(self, name: bytes, value: bytes) -> bool:
        """Whether a field must go. An Authentication-Results goes if its authserv-id is ours (RFC 8601 section 5)."""
        name = name.lower()
        if name == b"authentication-results":
            return bool(self.authserv_id) and _authserv_id(value) == self.authserv_id.lower()
        return name in self.names or name.startswith(self.prefixes)


def _authserv_id(value: bytes) -> bytes:
    """The name before the first semicolon (RFC 8601 section 2.2), as whoever trusts it will read it.

    Comments nest and may stand before it, and it may be quoted, with a backslash before any character (RFC 5322
    sections 3.2.2 and 3.2.4).
    """
    depth = 0
    kept = []
    for found in _PIECE.finditer(value):
        piece = found[0]
        if piece in (b"(", b")"):
            depth = max(depth + (1 if piece == b"(" else -1), 0)
            piece = b" "
        elif piece == b";" and not depth:
            break
        if not depth:
            kept.append(piece.removeprefix(b"\\"))
    words = b"".join(kept).replace(b'"', b"").split()
    return words[0].lower() if words else b""


class Message:
    """A message as it will be scanned and stored. It is a Content."""

    def __init__(
        self,
        source: Source,
        framing: Framing,
        return_path: bytes = b"",
        forgeries: Forgeries | None = None,
        edits: Edits | None = None,
    ) -> None:
        self.framing = framing
        self.return_path = framing.return_path or return_path
        self._source = source
        self._digest = ""
        self._forgeries = forgeries or Forgeries()
        head = source.head
        end = _header_end(head, framing.length)
        self.header_is_cut = end is None and source.size > len(head)
        header = head[: len(head) if end is None else end]
        self._header, self._cuts = _changed(self._forgeries, edits or Edits(), header, framing.length)
        # A message that begins with a folded line would write into the line of ours that comes to stand above it.
        self._guard = b"X-Unfolded:\n" if self._header[:1] in (b" ", b"\t") else b""
        top = head[: framing.length]
        lf = source.lf - top.count(b"\n")
        crlf = source.crlf - top.count(b"\r\n")
        self._crlf = 0 < lf == crlf
        gone = b"".join(head[begin:finish] for begin, finish, _ in self._cuts)
        self._rest_size = source.size - framing.length - len(gone) + sum(len(put) for _, _, put in self._cuts)
        if self._crlf:
            self._rest_size -= crlf - gone.count(b"\r\n")

    @property
    def size(self) -> int:
        """Bytes in all ``chunks``."""
        return len(self.return_path) + self._rest_size

    def chunks(self) -> Iterator[bytes]:
        """What is scanned: the Return-Path and the message, the same for every recipient."""
        if self.return_path:
            yield self.return_path
        yield from self._rest()

    def stored(self, delivered_to: bytes, headers: bytes) -> Iterator[bytes]:
        """What is stored for one recipient: delivery lines, ``headers`` of ours, then the message."""
        yield self.top(delivered_to, headers)
        yield from self._rest()

    def forwarded(self, delivered_to: bytes, headers: bytes) -> Iterator[bytes]:
        """What is sent on: no Return-Path (the next agent's to write), but our Delivered-To, which shows loops."""
        ours = b"" if delivered_to.strip() in self.framing.delivered_to.splitlines() else delivered_to
        yield ours + self.framing.delivered_to + headers + self._guard
        yield from self._rest()

    def stored_size(self, delivered_to: bytes, headers: bytes) -> int:
        """Bytes in ``stored``."""
        return len(self.top(delivered_to, headers)) + self._rest_size

    def top(self, delivered_to: bytes, headers: bytes) -> bytes:
        """The lines that stand before the message: those of the framing stay, ours are added where missing."""
        lines = self.return_path + (self.framing.delivered_to or delivered_to) + headers + self.framing.others
        return lines + self._guard if lines else b""

    def edited(self, edits: Edits) -> "Message":
        """The message to store or send on where rules change its header. Scanners and rules see this one."""
        if edits == Edits():
            return self
        return Message(self._source, self.framing, self.return_path, self._forgeries, edits)

    def names(self) -> set[str]:
        """The names of all of the message's own header fields, in lower case."""
        top = _by_name(self.framing.delivered_to + self.framing.others)
        return {name.decode("ascii") for name in (*top, *self._own)}

    def fields(self, name: str) -> list[bytes]:
        """The raw values of the message's own fields ``name``, those of its framing first.

        A Return-Path below the framing is a sender's invention and is not among them.
        """
        wanted = name.lower().encode("ascii", "replace")
        values = self._top.get(wanted, [])
        return list(values) if wanted == b"return-path" else values + self._own.get(wanted, [])

    def loops(self, addresses: Sequence[str]) -> bool:
        """Whether a Delivered-To below the framing names one of ``addresses``, byte for byte as qmail-local(8) does."""
        ours = {address.encode("utf-8", "surrogateescape") for address in addresses}
        return any(value.strip() in ours for value in self._own.get(b"delivered-to", ()))

    def received(self) -> float | None:
        """Seconds since the epoch at which the top Received says it came here; None where it does not say."""
        fields = self._own.get(b"received")
        if not fields:
            return None
        from email.utils import mktime_tz, parsedate_tz  # late: most deliveries never ask

        with contextlib.suppress(Exception):  # the email package raises what it likes on hostile dates
            parsed = parsedate_tz(fields[0].rpartition(b";")[2].decode("latin-1").strip())
            return float(mktime_tz(parsed)) if parsed else None
        return None

    def close(self) -> None:
        """Let go of the spool, if there is one of our own."""
        self._source.close()

    def digest(self) -> str:
        """SHA-256 of ``chunks``, in hexadecimal; reckoned once."""
        if not self._digest:
            sum_ = hashlib.sha256()
            for chunk in self.chunks():
                sum_.update(chunk)
            self._digest = sum_.hexdigest()
        return self._digest

    @functools.cached_property
    def _top(self) -> dict[bytes, list[bytes]]:
        return _by_name(self.return_path + self.framing.delivered_to + self.framing.others)

    @functools.cached_property
    def _own(self) -> dict[bytes, list[bytes]]:
        """The fields below the framing. Read once: a thousand rules may ask for as many names."""
        return _by_name(self._header)

    def _rest(self) -> Iterator[bytes]:
        pieces = self._pieces()
        return _with_lf(pieces) if self._crlf else pieces

    def _pieces(self) -> Iterator[bytes]:
        at = self.framing.length
        for begin, finish, put in (*self._cuts, (self._source.size, self._source.size, b"")):
            while at < begin:
                chunk = self._source.at(at, min(CHUNK, begin - at))
                at += len(chunk)
                yield chunk
            at = finish
            if put:
                yield put


def _with_lf(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        text = held + chunk
        held = b"\r" if text.endswith(b"\r") else b""
        yield text[: len(text) - len(held)].replace(b"\r\n", b"\n")
    if held:
        yield held


def _header_end(head: bytes, start: int) -> int | None:
    """Offset of the first empty line at or behind ``start``; None where ``head`` has none."""
    found = re.compile(rb"(?m)^\r?\n").search(head, start)
    if found is None:
        return None
    return found.start()


_Cut = tuple[int, int, bytes]
"""Offsets of what is left out, and what stands there instead."""


def _changed(forgeries: Forgeries, edits: Edits, header: bytes, start: int) -> tuple[bytes, list[_Cut]]:
    """The header from ``start`` on with LF line ends, without what must go; and where the message differs from it."""
    cuts: list[_Cut] = []
    kept: list[bytes] = []
    at = start
    tag = edits.tag
    for field in _FIELD.finditer(header, start):
        name = field[1].lower()
        if name in edits.removed or forgeries.forged(name, field[2]):
            kept.append(header[at : field.start()])
            at = field.end()
            if cuts and cuts[-1][1] == field.start() and not cuts[-1][2]:
                cuts[-1] = (cuts[-1][0], at, b"")
            else:
                cuts.append((field.start(), at, b""))
        elif tag and name == b"subject":
            cuts.append((field.start(2), field.start(2), _tag(tag, field[2])))
            tag = ""  # programs show the first of several
    kept.append(header[at:])
    return b"".join(kept).replace(b"\r\n", b"\n"), cuts


def _tag(tag: str, subject: bytes) -> bytes:
    """What to put right behind "Subject:" so that ``tag`` stands before ``subject``, which stays as it is."""
    line = subject.partition(b"\n")[0].rstrip()
    if tag.isascii() and "=?" not in tag:
        words = tag.encode("ascii")
    else:
        # Blanks between two encoded words are not shown (RFC 2047 section 6.2).
        blank = " " if subject.lstrip().startswith(b"=?") else ""
        words = "\n ".join(header_lines.encoded_words(tag + blank)).encode("ascii")
    fold = b"\n" if line and len(b"Subject: ") + len(words) + len(line) > _LINE else b""
    return b" " + words + fold + (b"" if subject.startswith((b" ", b"\t", b"\n", b"\r")) else b" ")


def _by_name(header: bytes) -> dict[bytes, list[bytes]]:
    """The raw values of the fields by their names in lower case, each name's in order."""
    found: dict[bytes, list[bytes]] = {}
    for field in _FIELD.finditer(header):
        found.setdefault(field[1].lower(), []).append(field[2])
    return found


def is_passing(error: OSError) -> bool:
    """Whether an error of the system may be gone at the next try, whatever the file is like."""
    return error.errno in {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}
