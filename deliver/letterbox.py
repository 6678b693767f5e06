"""The LMTP door of the service: one conversation, from its socket to one reply per recipient."""

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from deliver import wiring
from deliver.errors import Deferred
from deliver.lmtp import Abort, Answer, Chunk, DataAsked, DataDone, Mailbox, Quit, RecipientAsked, Session, answer_to
from deliver.message import IN_MEMORY, Framing, Source, read_framing
from deliver.settings import Config
from deliver.users import Found
from deliver.values import Envelope, Reply

Blocking = Callable[..., Awaitable[Any]]

_BLOCK = 64 * 1024  # bytes of one read of a message
_COMMANDS = 8 * 1024  # bytes of one read of commands: meanwhile everybody else waits
_NOBODY = Answer(550, "5.1.1", "There is no such user")
_NO_SPOOL = Answer(452, "4.3.1", "Message cannot be spooled")


async def add(source: Source, data: bytes, maildirs: Sequence[str], blocking: Blocking) -> None:
    """Append to a message; a large one is spooled in the first of the Maildirs that takes it.

    The spool is closed when nobody holds the source any more: a thread may read on when those who waited for it have
    given up, and must not find another message behind its descriptor. Raises OSError or Deferred.
    """

    def spool() -> int:
        trouble = Deferred("there is no Maildir to spool in")
        for maildir in maildirs:
            try:
                fd = wiring.spool(maildir)
            except Deferred as error:
                trouble = error
                continue
            weakref.finalize(source, os.close, fd)
            return fd
        raise trouble

    if source.size + len(data) <= IN_MEMORY:
        source.add(data, spool)
    else:
        await blocking(source.add, data, spool)


class Incoming(NamedTuple):
    """A message that has been received whole: its recipients' envelopes, in order, and a Return-Path line of ours."""

    source: Source
    framing: Framing
    return_path: bytes
    envelopes: tuple[Envelope, ...]


class Desk(NamedTuple):
    """What a transaction works with.

    ``look_up`` finds an address's Maildir; None is nobody. ``deliver`` gives each recipient's reply, in order, whatever
    happens. ``excuse`` is the reply for an error, once it is logged. ``blocking`` runs what reads or writes disks.
    """

    config: Config
    look_up: Callable[[str], Awaitable[Found | None]]
    deliver: Callable[[Incoming], Awaitable[Sequence[Reply]]]
    excuse: Callable[[Exception, str], Reply]
    blocking: Blocking


class Transaction:
    """What one MAIL command began: who gets it, and the message as far as it has come."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.found: dict[str, Found] = {}
        self.source = Source()
        self.until: float | None = None  # by the loop's clock, once the message has begun
        self.trouble: Answer | None = None


class Letterbox:
    """One conversation. ``desk`` is asked for anew with each message.

    ``stopping`` says that no message is to begin any more; ``idle`` holds what must then be woken.
    """

    def __init__(
        self,
        connection: socket.socket,
        desk: Callable[[], Desk],
        stopping: asyncio.Event,
        idle: set[asyncio.Timeout],
    ) -> None:
        self._connection = connection
        self._desk = desk
        self._stopping = stopping
        self._idle = idle
        self._transaction = Transaction(desk())
        self._session = Session(os.uname().nodename, self._transaction.desk.config.service.bytes)

    async def converse(self) -> None:
        """Lead it to its end. Raises OSError where the peer goes away."""
        session = self._session
        await self._send(session.greeting())
        while True:
            match session.next_event():
                case None:  # only now: what was pipelined is answered together (RFC 2920 section 3.2)
                    await self._send(session.output())
                    await self._read()
                case RecipientAsked(recipient):
                    await self._recipient(recipient)
                case DataAsked():
                    loop = asyncio.get_running_loop()
                    self._transaction.until = loop.time() + self._transaction.desk.config.deadline
                    session.accept()
                case Chunk(data):
                    await self._add(data)
                case DataDone(sender, recipients):
                    session.complete(await self._complete(sender, recipients))
                    self._forget()
                case Abort():
                    self._forget()
                case Quit():
                    await self._send(session.output())
                    return

    def _forget(self) -> None:
        self._transaction = Transaction(self._desk())

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):  # nearly always there is room for all of it
            data = data[self._connection.send(data) :] if data else data
        if not data:
            return
        async with asyncio.timeout(self._transaction.desk.config.service.idle):
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def _read(self) -> None:
        """Give the session what comes next, or close it: the client is silent or too slow, or the service stops."""
        loop = asyncio.get_running_loop()
        until = self._transaction.until
        if until is None and self._stopping.is_set():
            self._session.close("4.3.2", "Service is stopping")
            return
        patience: float = self._transaction.desk.config.service.idle
        limit = asyncio.timeout(patience if until is None else min(patience, until - loop.time()))
        most = _COMMANDS if until is None else _BLOCK
        try:
            async with limit:
                if until is None:
                    self._idle.add(limit)
                try:
                    data = self._connection.recv(most)
                except BlockingIOError:
                    data = await loop.sock_recv(self._connection, most)
                else:
                    await asyncio.sleep(0)  # who sends without pause must not be served alone
                self._session.receive(data)
        except TimeoutError:
            if not limit.expired():
                raise
            if until is None and self._stopping.is_set():
                self._session.close("4.3.2", "Service is stopping")
            else:
                self._session.close("4.4.2", "Nothing was said for too long")
        finally:
            self._idle.discard(limit)

    async def _recipient(self, recipient: Mailbox) -> None:
        """550 only where it is certain that nobody is there; 451 where nobody can tell."""
        if not self._transaction.found:  # between messages the configuration may have been read again
            self._transaction.desk = self._desk()
        desk = self._transaction.desk
        try:
            found = await desk.look_up(recipient.address)
        except Exception as error:
            self._session.refuse(answer_to(desk.excuse(error, recipient.address)))
            return
        if found is None:
            self._session.refuse(_NOBODY)
            return
        self._transaction.found[recipient.address] = found
        self._session.accept()

    async def _add(self, data: bytes) -> None:
        """Spool it; a full disk is the answer to every recipient, and the rest of the message is swallowed."""
        transaction = self._transaction
        if transaction.trouble is not None:
            return
        maildirs = [found.maildir for found in transaction.found.values()]
        try:
            await add(transaction.source, data, maildirs, transaction.desk.blocking)
        except (OSError, Deferred) as error:
            transaction.desk.excuse(error, ", ".join(transaction.found))
            transaction.trouble = _NO_SPOOL

    async def _complete(self, sender: Mailbox, recipients: Sequence[Mailbox]) -> list[Answer]:
        """One answer per recipient, in their order; a recipient's trouble is only that recipient's."""
        transaction = self._transaction
        if transaction.trouble is not None:
            return [transaction.trouble] * len(recipients)
        return_path = f"Return-Path: <{sender.written}>\n".encode()
        envelopes = []
        for recipient in recipients:
            found = transaction.found[recipient.address]
            envelope = Envelope(
                sender=sender.address,
                recipient=recipient.address,
                maildir=found.maildir,
                extension=found.extension,
                return_path=return_path,
                delivered_to=f"Delivered-To: {recipient.written}\n".encode(),
                loop_addresses=tuple(dict.fromkeys((recipient.address, recipient.written))),
            )
            envelopes.append(envelope)
        framing = read_framing(transaction.source.head)._replace(return_path=b"")  # MAIL FROM says it
        incoming = Incoming(transaction.source, framing, return_path, tuple(envelopes))
        return [answer_to(reply) for reply in await transaction.desk.deliver(incoming)]
