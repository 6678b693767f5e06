"""The LMTP door of the service: one conversation, from its socket to one reply per recipient."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from deliver import wiring
from deliver.config import Config
from deliver.errors import Deferred, DeliverError
from deliver.lmtp import Abort, Answer, Chunk, DataAsked, DataDone, Mailbox, Quit, RecipientAsked, Session, answer_to
from deliver.message import IN_MEMORY, Message, Source, read_framing
from deliver.users import Found, look_up
from deliver.values import Envelope, Reply

AT_ONCE = 16
"""Recipients of one message that are delivered to at the same time; more would only wait for the same disk."""

_BLOCK = 256 * 1024


class Gate(Protocol):
    """Lets so many messages be in work."""

    def work(self, size: int) -> contextlib.AbstractAsyncContextManager[None]:
        """See service.Gate."""


class Transaction:
    """What one MAIL command began: who gets it, and the message as far as it has come."""

    def __init__(self) -> None:
        self.found: dict[str, Found] = {}
        self.source = Source()
        self.turn = contextlib.AsyncExitStack()
        self.trouble: Answer | None = None

    async def end(self) -> None:
        """Let go of the spool and of the turn."""
        self.source.close()
        await self.turn.aclose()


class Letterbox(NamedTuple):
    """How conversations are led. ``deliver`` delivers to one recipient and answers, whatever happens."""

    config: Config
    gate: Gate
    deliver: Callable[[Message, Envelope], Awaitable[Reply]]
    stopping: asyncio.Event

    async def converse(self, connection: socket.socket) -> None:
        """Lead one conversation to its end. Raises OSError where the peer goes away."""
        loop = asyncio.get_running_loop()
        session = Session(os.uname().nodename, self.config.service.bytes)
        await loop.sock_sendall(connection, session.greeting())
        transaction = Transaction()
        try:
            while True:
                event = session.next_event()
                if output := session.output():
                    await loop.sock_sendall(connection, output)
                match event:
                    case None:
                        await self._read(connection, session)
                    case RecipientAsked(recipient):
                        await self._recipient(session, transaction, recipient)
                    case DataAsked(_, recipients, size):
                        await self._begin(session, transaction, recipients, size)
                    case Chunk(data):
                        await self._add(transaction, data)
                    case DataDone(sender, recipients):
                        session.complete(await self._complete(transaction, sender, recipients))
                        await transaction.end()
                        transaction = Transaction()
                    case Abort():
                        await transaction.end()
                        transaction = Transaction()
                    case Quit():
                        break
        finally:
            await transaction.end()

    async def _read(self, connection: socket.socket, session: Session) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.ensure_future(self.stopping.wait())
        reading = asyncio.ensure_future(loop.sock_recv(connection, _BLOCK))
        try:
            await asyncio.wait(
                (reading, stopping), timeout=self.config.service.idle, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                session.receive(reading.result())
            elif self.stopping.is_set():
                session.close("4.3.2", "Service is stopping")
            else:
                session.close("4.4.2", "Nothing was said for too long")
        finally:
            for task in (stopping, reading):
                task.cancel()
            await asyncio.gather(stopping, reading, return_exceptions=True)

    async def _recipient(self, session: Session, transaction: Transaction, recipient: Mailbox) -> None:
        """550 only where it is certain that nobody is there; 451 where nobody can tell."""
        try:
            if self.config.users is None:
                raise Deferred("LMTP needs the table [users]", "4.3.5 Mail filter is not configured")
            found = await asyncio.to_thread(look_up, self.config.users, recipient.address)
        except DeliverError as error:
            status, _, text = error.line.partition(" ")
            session.refuse(Answer(451, status, text))
            return
        if found is None:
            session.refuse(Answer(550, "5.1.1", "There is no such user"))
            return
        transaction.found[recipient.address] = found
        session.accept()

    async def _begin(
        self, session: Session, transaction: Transaction, recipients: tuple[Mailbox, ...], size: int
    ) -> None:
        del recipients
        try:
            await transaction.turn.enter_async_context(self.gate.work(size))
        except DeliverError as error:
            status, _, text = error.line.partition(" ")
            session.refuse(Answer(452, status, text))
            return
        session.accept()

    async def _add(self, transaction: Transaction, data: bytes) -> None:
        """Spool it; a full disk is the answer to every recipient, and the rest of the message is swallowed."""
        if transaction.trouble is not None:
            return
        maildir = next(iter(transaction.found.values())).maildir
        arguments = (data, lambda: wiring.spool(maildir))
        try:
            if transaction.source.size + len(data) <= IN_MEMORY:
                transaction.source.add(*arguments)
            else:
                await asyncio.to_thread(transaction.source.add, *arguments)
        except (OSError, DeliverError):
            transaction.trouble = Answer(452, "4.3.1", "Message cannot be spooled")

    async def _complete(
        self, transaction: Transaction, sender: Mailbox, recipients: tuple[Mailbox, ...]
    ) -> list[Answer]:
        """One answer per recipient, in their order; a recipient's trouble is only that recipient's."""
        if transaction.trouble is not None:
            return [transaction.trouble] * len(recipients)
        framing = read_framing(transaction.source.head)._replace(return_path=b"")  # MAIL FROM says it
        return_path = f"Return-Path: <{sender.written}>\n".encode("utf-8", "surrogateescape")
        message = Message(transaction.source, framing, return_path, wiring.forgeries(self.config))
        places = asyncio.Semaphore(AT_ONCE)

        async def one(recipient: Mailbox) -> Answer:
            found = transaction.found[recipient.address]
            envelope = Envelope(
                sender=sender.address,
                recipient=recipient.address,
                maildir=found.maildir,
                extension=found.extension,
                return_path=return_path,
                delivered_to=f"Delivered-To: {recipient.written}\n".encode("utf-8", "surrogateescape"),
                loop_addresses=(recipient.address,),
            )
            async with places:
                return answer_to(await self.deliver(message, envelope))

        return list(await asyncio.gather(*map(one, recipients)))
