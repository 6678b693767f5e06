"""Viruses: ask an ICAP server (RFC 3507), as c-icap with its virus_scan service, and most vendors' gateways, speak it.

The message goes as the body of an HTTP response (RESPMOD) or request (REQMOD) that nobody ever made. What the server
found stands in header lines of its answer: X-Infection-Found and X-Violations-Found (draft-stecher-icap-subid), or
X-Virus-ID. ``Answer`` knows bytes, not sockets.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from deliver.scanners.address import Address, TcpAddress, parse
from deliver.scanners.pool import BadAnswer, Health, NoAnswer, first_answer, printable
from deliver.scanners.stream import chunks, connected
from deliver.values import Content, Envelope, Finding, Verdict

_BLOCK = 64 * 1024  # bytes
_HEAD_LIMIT = 64 * 1024  # bytes of the header lines of an answer, or of one chunk's size line
_GROWTH = 1024 * 1024  # bytes: a page that takes the message's place may be longer than the message
_NAME_LIMIT = 200  # characters of a virus's name
_QUOTED = 120  # characters of a strange answer that the log shows
_STATUS_LINE = re.compile(rb"ICAP/1\.0 ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_FIELD = re.compile(rb"([!-9;-~]+):[ \t]*((?:.*)(?:\r?\n[ \t].*)*)")
_THREAT = re.compile(r"\bThreat=([^;]+)", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_CLOSING = 1.0  # seconds
_CONTINUE = 100
_OK = range(200, 207)
_NO_CONTENT = 204


class Service(NamedTuple):
    """What is asked: ``name`` is its path on the server, ``method`` RESPMOD or REQMOD.

    ``preview`` is how many bytes the server may look at before it says whether it wants the rest; 0 for none.
    """

    name: str
    method: str = "RESPMOD"
    preview: int = 1024


class Icap:
    """One ICAP server, or a pool of them that are asked in turn.

    ``name`` is the scanner's in the configuration, ``addresses`` are as there ("tcp:host:port", "unix:/path";
    ValueError otherwise). ``max_size`` is in bytes, for ``scan_all``. ``timeout`` is in seconds, for all members of the
    pool together.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        max_size: int,
        timeout: float,
        service: Service,
    ) -> None:
        self.name = name
        self.max_size = max_size
        self._addresses = tuple(parse(text) for text in addresses)
        self._timeout = timeout
        self._service = service
        self._health = Health()

    async def scan(self, content: Content, _envelope: Envelope) -> Verdict:
        """Return CLEAN, VIRUS, SKIPPED (the server did not want to see the whole message) or FAILED."""

        async def ask(address: Address, _deadline: float) -> Verdict:
            async with connected(address) as (reader, writer):
                return await self._converse(address, content, reader, writer)

        try:
            return await first_answer(self.name, self._addresses, self._timeout, ask, self._health)
        except NoAnswer as error:
            return Verdict(self.name, Finding.FAILED, reason=error.reason, detail=error.detail)

    async def _converse(
        self, address: Address, content: Content, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Verdict:
        # Less than the message, so that the server always has to say whether it wants the rest.
        preview = min(self._service.preview, max(0, content.size - 1))
        host = address.host if isinstance(address, TcpAddress) else "localhost"
        answer = Answer(content.size + _GROWTH)
        wanted = asyncio.Event()  # the rest
        if not preview:
            wanted.set()
        head = request(self._service, host, content.size, preview)
        sending = asyncio.create_task(_send(content, preview, head, wanted, writer))
        try:
            while not answer.complete:
                data = await reader.read(_BLOCK)
                answer.feed(data)
                if answer.go_on:
                    wanted.set()
                if not data:
                    break
            if not answer.complete:
                raise answer.cut()
            if wanted.is_set() and not answer.names():
                # A server that has read everything may be quicker than we are to notice that all is sent.
                await asyncio.wait((sending,), timeout=_CLOSING)
            sent = sending.done() and not sending.exception()
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending
        if names := answer.names():
            return Verdict(self.name, Finding.VIRUS, names=names)
        if answer.status == _NO_CONTENT and not wanted.is_set():
            return Verdict(self.name, Finding.SKIPPED, reason=f"{self.name} does not scan this kind of message")
        if not sent:
            raise BadAnswer(f"status {answer.status} before it had read the whole message")
        if answer.status == _NO_CONTENT or answer.digest == await asyncio.to_thread(content.digest):
            return Verdict(self.name, Finding.CLEAN)
        if answer.digest:
            # Something else is to be shown instead; why, it has not told.
            return Verdict(self.name, Finding.VIRUS, names=("unnamed",))
        raise BadAnswer(f"status {answer.status} without a message")


async def _send(
    content: Content, preview: int, head: bytes, wanted: asyncio.Event, writer: asyncio.StreamWriter
) -> None:
    """Send the request: its header, the preview, and once it is wanted the rest. Raises OSError."""
    writer.write(head)
    ahead = preview
    async for piece in chunks(content):
        rest = piece
        if ahead:
            writer.write(chunk(piece[:ahead]))
            rest = piece[ahead:]
            ahead -= len(piece) - len(rest)
            if not ahead:
                writer.write(b"0\r\n\r\n")
        if not ahead:
            await writer.drain()
            await wanted.wait()
            writer.write(chunk(rest))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def request(service: Service, host: str, size: int, preview: int) -> bytes:
    """The header of a request for a message of ``size`` bytes (RFC 3507 sections 4.3 to 4.5, 4.8, 4.9)."""
    about = f"Content-Type: message/rfc822\r\nContent-Length: {size}\r\n\r\n"
    if service.method == "REQMOD":
        inner = f"POST /message.eml HTTP/1.1\r\nHost: localhost\r\n{about}"
        parts = f"req-hdr=0, req-body={len(inner)}"
    else:
        asked = "GET /message.eml HTTP/1.1\r\nHost: localhost\r\n\r\n"
        inner = f"{asked}HTTP/1.1 200 OK\r\n{about}"
        parts = f"req-hdr=0, res-hdr={len(asked)}, res-body={len(inner)}"
    lines = [
        f"{service.method} icap://{_uri_host(host)}/{service.name} ICAP/1.0",
        f"Host: {_uri_host(host)}",
        "Allow: 204",
    ]
    if preview:
        lines.append(f"Preview: {preview}")
    return "\r\n".join([*lines, f"Encapsulated: {parts}", "", inner]).encode("ascii")


def _uri_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def chunk(data: bytes) -> bytes:
    """Data in the chunked coding (RFC 9112 section 7.1); nothing for none, since an empty chunk ends the body."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


class Answer:
    """An ICAP answer, fed in pieces as they come.

    ``go_on`` says that the server wants what comes behind the preview; ``complete``, that all is here. ``status`` is 0
    until its line is here. ``digest`` is the SHA-256 of the body that came with it, "" where none did. The body is not
    kept; one of more than ``limit`` bytes is a BadAnswer, as is whatever ICAP does not know.
    """

    def __init__(self, limit: int) -> None:
        self.status = 0
        self.go_on = False
        self.complete = False
        self.digest = ""
        self._limit = limit
        self._fields: list[tuple[str, str]] = []
        self._buffer = bytearray()
        self._skip = 0  # bytes of the encapsulated header, or of a chunk's end
        self._chunk = 0  # bytes of this chunk still to come
        self._last = False
        self._hash = hashlib.sha256()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._buffer += data
        while not self.complete and self._step():
            pass

    def cut(self) -> BadAnswer:
        """What is wrong with an answer that ends here."""
        if not self.status and not self._buffer:
            return BadAnswer("the connection was closed without an answer", "did not answer")
        return BadAnswer("the answer is cut")

    def names(self) -> tuple[str, ...]:
        """The viruses that the answer names, printable, each once."""
        found = []
        for name, value in self._fields:
            if name == "x-infection-found":
                found += _THREAT.findall(value) or [value]
            elif name == "x-virus-id" and value.lower() != "no threats":  # some say so
                found.append(value)
        if not found:
            # A count, and for each finding four lines: file, name, id, what was done.
            for name, value in self._fields:
                lines = value.splitlines() or [""]
                if name == "x-violations-found" and lines[0].strip() != "0":
                    found += lines[2::4] or ["unnamed"]
        return tuple(dict.fromkeys(printable(name.strip(), _NAME_LIMIT) or "unnamed" for name in found))

    def _step(self) -> bool:
        """One step further; False where more bytes are needed."""
        if not self.status:
            return self._head()
        if self._skip:
            taken = min(self._skip, len(self._buffer))
            del self._buffer[:taken]
            self._skip -= taken
            return not self._skip
        if self._chunk:
            piece = bytes(self._buffer[: self._chunk])
            del self._buffer[: len(piece)]
            self._hash.update(piece)
            self._chunk -= len(piece)
            if not self._chunk:
                self._skip = 2  # CRLF
            return bool(piece)
        return self._line()

    def _head(self) -> bool:
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if len(head) > _HEAD_LIMIT:
            raise BadAnswer(f"the answer's header has more than {_HEAD_LIMIT} bytes")
        line, _, fields = head.partition(b"\r\n")
        if not b"ICAP/1.0 ".startswith(line[:9]) and not line.startswith(b"ICAP/1.0 "):
            raise BadAnswer(f'unknown answer "{printable(line.decode("latin-1"), _QUOTED)}"')
        if not end:
            return False
        status = _STATUS_LINE.fullmatch(line)
        if status is None:
            raise BadAnswer(f'unknown answer "{printable(line.decode("latin-1"), _QUOTED)}"')
        self._buffer = bytearray(rest)
        if int(status[1]) == _CONTINUE and not self.go_on:
            self.go_on = True
            return True
        if int(status[1]) not in _OK:
            raise BadAnswer(printable(line.decode("latin-1"), _QUOTED), "reported an error")
        self.status = int(status[1])
        self._fields = [
            (found[1].decode("ascii").lower(), found[2].decode("latin-1").strip()) for found in _FIELD.finditer(fields)
        ]
        parts = ",".join(value for name, value in self._fields if name == "encapsulated")
        body = re.search(r"\b(?:req|res|opt)-body *= *([0-9]{1,8})\b", parts)
        if body is None:
            self.complete = True
        else:
            self._skip = int(body[1])
            if self._skip > _HEAD_LIMIT:
                raise BadAnswer(f"the encapsulated header has more than {_HEAD_LIMIT} bytes")
        return True

    def _line(self) -> bool:
        """A chunk's size, or a line behind the last chunk (RFC 9112 section 7.1.2)."""
        line, end, _ = bytes(self._buffer[:_HEAD_LIMIT]).partition(b"\r\n")
        if not end:
            if len(self._buffer) >= _HEAD_LIMIT:
                raise BadAnswer("a line of the answer does not end")
            return False
        del self._buffer[: len(line) + 2]
        if self._last:
            if not line:
                self.digest = self._hash.hexdigest()
                self.complete = True
            self._size += len(line)
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise BadAnswer(f'not a chunk: "{printable(line.decode("latin-1"), _QUOTED)}"')
            self._chunk = int(size[1], 16)
            self._last = not self._chunk
            self._size += self._chunk
        if self._size > self._limit:
            raise BadAnswer(f"the answer has more than {self._limit} bytes")
        return True
