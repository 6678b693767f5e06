"""The aiospamc package's connections, their known faults mended: bounded answers, no TLS, sockets always closed.

aiospamc 1.2.0 reads an answer of any size, closes the socket only when all went well, needs a user name when it is
imported, and its own front end makes a TLS context for every request. The protocol is SpamAssassin's spamd/PROTOCOL.
"""

import asyncio
import os
from contextlib import suppress
from typing import Any, NamedTuple

from deliver.scanners.address import Address, TcpAddress
from deliver.scanners.pool import BadAnswer, printable
from deliver.scanners.stream import open_unix

# aiospamc calls getpass.getuser() for a default we never use; for a uid without an entry in the password file (a
# container's) that raises unless one of these variables is set.
_named = any(os.environ.get(variable) for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"))
if not _named:
    os.environ["LOGNAME"] = "nobody"
try:
    from aiospamc.client import Client
    from aiospamc.connections import ConnectionManager, TcpConnectionManager, Timeout, UnixConnectionManager
    from aiospamc.exceptions import AIOSpamcConnectionFailed, BadResponse
    from aiospamc.header_values import (
        ActionOption,
        MessageClassOption,
        MessageClassValue,
        SetOrRemoveValue,
        SpamValue,
        UserValue,
    )
    from aiospamc.requests import Request
    from aiospamc.responses import ResponseException
finally:
    if not _named:
        del os.environ["LOGNAME"]

_BLOCK = 64 * 1024  # bytes
_HEAD_LIMIT = 4096  # bytes of status line and headers; spamd's have some 70
_QUOTED = 120  # characters of a strange answer that the log shows


class Answer(NamedTuple):
    """spamd's answer to HEADERS: its ``Spam:`` line, and the header section of the message as spamd would write it."""

    spam: bool
    score: float
    required: float
    header: bytes


class _Mended(ConnectionManager):  # type: ignore[misc]  # the package has no types
    """What both kinds of connection share. ``limit`` is the most bytes that an answer may have.

    ``needed`` are the lines that its head has, once each.
    """

    limit: int
    needed: tuple[bytes, ...]

    async def request(self, data: bytes) -> bytes:
        """Without a limit of its own, which takes a task of its own: whoever asks has one for all members of a pool."""
        return await self._send(data)

    async def _send(self, data: bytes) -> bytes:
        reader, writer = await self._connect()
        try:
            writer.write(data)
            writer.write_eof()
            await writer.drain()
            return await self._receive(reader)
        finally:
            # Not close(): that would wait for a peer that does not read.
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader) -> bytes:
        answer = bytearray()
        while block := await reader.read(_BLOCK):
            answer += block
            if len(answer) > self.limit:
                raise BadAnswer(f"the answer has more than {self.limit} bytes")
        if not answer:
            raise BadAnswer("the connection was closed without an answer", "did not answer")
        # The library's parser takes a cut header section for a whole one, the last of two Spam lines for the only one,
        # and copies the whole answer once a line.
        head, end, _ = bytes(answer[:_HEAD_LIMIT]).partition(b"\r\n\r\n")
        if head.startswith(b"SPAMD/") and b" 0 " not in head.partition(b"\r\n")[0]:
            return bytes(answer[:_HEAD_LIMIT])  # an error: a status line, often without any header
        if not end or any(head.count(b"\r\n" + name + b":") != 1 for name in self.needed):
            raise BadAnswer(f"not an answer to what was asked: {_quote(bytes(answer))}")
        return bytes(answer)


class _UnixConnection(_Mended, UnixConnectionManager):  # type: ignore[misc]
    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await open_unix(self.path)


class _TcpConnection(_Mended, TcpConnectionManager):  # type: ignore[misc]
    pass


async def ask_headers(address: Address, body: bytes, user: str, limit: int) -> Answer:
    """Send one HEADERS request and return its answer, however long that takes.

    ``user`` may be ""; ``limit`` is the most bytes that an answer may have. Raises BadAnswer or OSError.
    """
    response = await _ask(address, "HEADERS", {}, body, user, limit, (b"Content-length", b"Spam"))
    spam = response.headers.get("Spam")
    if not isinstance(spam, SpamValue):
        raise BadAnswer("the answer has no Spam line")
    return Answer(spam.value, spam.score, spam.threshold, response.body)


async def tell(address: Address, body: bytes, user: str, *, spam: bool) -> bool:
    """Tell spamd in one TELL request that a message is spam, or is not; whether it has learned from it.

    What it has learned as the contrary it forgets first; what it knows already it does not learn again. Arguments and
    errors are those of ask_headers.
    """
    kind = MessageClassValue(MessageClassOption.spam if spam else MessageClassOption.ham)
    headers = {"Message-class": kind, "Set": SetOrRemoveValue(ActionOption(local=True))}
    response = await _ask(address, "TELL", headers, body, user, _HEAD_LIMIT, ())
    return "DidSet" in response.headers


async def _ask(
    address: Address,
    verb: str,
    headers: dict[str, Any],
    body: bytes,
    user: str,
    limit: int,
    needed: tuple[bytes, ...],
) -> Any:
    connection: _Mended
    if isinstance(address, TcpAddress):
        connection = _TcpConnection(address.host, address.port, None, Timeout())
    else:
        connection = _UnixConnection(address.path, Timeout())
    connection.limit = limit
    connection.needed = needed
    whose = {"User": UserValue(user)} if user else {}
    try:
        return await Client(connection).request(Request(verb, headers={**headers, **whose}, body=body))
    except AIOSpamcConnectionFailed as error:
        raise error.__cause__ or error from None
    except ResponseException as error:
        words = printable(str(error), _QUOTED)
        raise BadAnswer(f"status {error.code}: {words}", "reported an error") from error
    except BadResponse as error:
        # Its own text is the whole answer; the cause says what is wrong with it.
        raise BadAnswer(f"{type(error.__cause__).__name__} in {_quote(error.args[0])}") from error
    except ValueError as error:
        raise BadAnswer(str(error)) from error


def _quote(answer: bytes) -> str:
    return f'"{printable(answer[:_QUOTED].decode("latin-1"), _QUOTED)}"'
