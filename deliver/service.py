"""`deliver serve`: one process that delivers for many, for one uid's mail, through two doors.

The command's door is a UNIX socket: a client hands over its standard input and working directory as descriptors
(unix(7), SCM_RIGHTS) and exits with the answer. The other door is LMTP (RFC 2033). Behind both lies the same story as
in a delivery without a service; scans of one message are shared by its recipients.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from deliver import config, exits, maildrop, scan_once, users, wiring
from deliver.client import DECLINED
from deliver.envelope import envelope_of, maildir_of
from deliver.errors import Deferred, DeliverError
from deliver.gate import BUSY, Gate
from deliver.letterbox import Desk, Incoming, Letterbox, add
from deliver.message import CHUNK, Framing, Message, Source, read_framing
from deliver.metrics import Metrics
from deliver.pipeline import Site, deliver
from deliver.request import Descriptor, Request, directory_of, gone, in_place, is_file, readable, receive, size_of
from deliver.settings import Config, Users
from deliver.sockets import listen, notify, waiting
from deliver.values import Envelope, Outcome, Reply

LOOKUPS = 16
"""User lookups at the same time. They have threads of their own: a database that hangs must not keep disks waiting."""

_AT_ONCE = 32 * 1024
"""Bytes of a message that is looked at without a thread: a header of this size can take 10 ms, others wait so long."""

_GET_CAP = 8192  # bytes of a request for /metrics
_TOO_LATE = Deferred("the overall deadline was reached", "4.4.7 Delivery took too long")


class Running(NamedTuple):
    """What follows from one reading of the configuration; a reload makes a new one, deliveries keep theirs.

    ``watches`` are to be run as long as it holds.
    """

    config: Config
    site: Site
    watches: Sequence[Callable[[], Coroutine[Any, Any, None]]]


class Door(NamedTuple):
    """Where somebody may come in. ``path`` is a UNIX socket's; ``busy`` is said to those for whom there is no place."""

    listener: socket.socket
    path: str
    serve: Callable[[socket.socket], Awaitable[None]]
    busy: bytes


class Service:
    """A service with the configuration at ``path``, which is absolute; raises NotConfigured where that is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._metrics = Metrics()
        self._running = self._load()
        limits = self._running.config.service
        self._limits = limits
        self._gate = Gate(limits.messages, limits.bytes, self._metrics)
        # Scans have threads of their own (the loop's default ones), and so have lookups: who waits for a network must
        # not keep disks waiting.
        self._disk = ThreadPoolExecutor(max(16, limits.messages), "disk")
        self._lookups = ThreadPoolExecutor(LOOKUPS, "lookup")
        self._watchers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._idle: set[asyncio.Timeout] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in work. Raises Deferred where it cannot listen."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2 * scan_once.AT_ONCE, "scan"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        doors = self._open_doors()
        self._watch()
        accepting = [asyncio.create_task(self._accept(door)) for door in doors]
        self._log(level="info", detail="ready", uid=os.geteuid())
        if self._limits.lmtp and self._running.config.users is None:
            self._log(level="warning", detail="LMTP answers 451 to every recipient: the table [users] is missing")
        gc.collect()
        gc.freeze()  # what is there now stays: a collection need not walk it for every message
        notify("READY=1")
        await self._stopping.wait()
        notify("STOPPING=1")
        for task in accepting:
            task.cancel()
        await asyncio.gather(*accepting, return_exceptions=True)
        for door in doors:
            self._close(door)
        for limit in self._idle:
            limit.reschedule(loop.time())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._running.config.deadline)
        self._log(level="info", detail=f"stopped; {len(self._tasks)} did not end in time" if self._tasks else "stopped")

    def _load(self) -> Running:
        settings = config.load(self._path)
        site, watches = wiring.resident(settings, self._blocking, self._metrics)
        return Running(settings, site, watches)

    def _watch(self) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        self._watchers = [asyncio.create_task(watch()) for watch in self._running.watches]

    def _reload(self) -> None:
        """SIGHUP: a wrong file changes nothing. Sockets and limits stay as they are until a restart."""
        try:
            self._running = self._load()
        except Exception as error:
            detail = error.detail if isinstance(error, DeliverError) else repr(error)
            self._log(level="warning", detail=f"still with the old configuration: {detail}")
            return
        self._watch()
        self._log(level="info", detail="configuration read again")

    async def _blocking(self, function: Callable[..., Any], *given: Any) -> Any:
        """Run what reads or writes disks. Whoever stops waiting for it does not stop it."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *given)

    def _log(self, **record: Any) -> None:
        self._running.site.log(**record)

    # The doors.

    def _open_doors(self) -> list[Door]:
        busy = exits.public(BUSY)
        wanted = [
            *((f"unix:{path}", 0o600, self._command, f"75\n{busy}\n.") for path in (self._limits.socket,) if path),
            *((address, 0o666, self._lmtp, f"421 {BUSY}\r\n") for address in self._limits.lmtp),
            *((address, 0o600, self._tell, "HTTP/1.0 503 Busy\r\n\r\n") for address in self._limits.metrics),
        ]
        doors: list[Door] = []
        try:
            for address, mode, serve_, words in wanted:
                listener, path = listen(address, mode)
                doors.append(Door(listener, path, serve_, words.encode()))
        except BaseException:
            for door in doors:
                self._close(door)
            raise
        return doors

    async def _accept(self, door: Door) -> None:
        """Let people in. Each door has its own places, so that a crowd at one of them does not close the others."""
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(self._limits.connections)
        while True:
            try:
                connection, _ = await loop.sock_accept(door.listener)
            except OSError as error:  # EMFILE: those in work will free descriptors
                self._log(level="warning", detail=f"accept: {error}")
                await asyncio.sleep(1)
                continue
            try:
                async with asyncio.timeout(Gate.PATIENCE):
                    await places.acquire()
            except TimeoutError:  # those behind it have waited, too
                for one in (connection, *waiting(door.listener)):
                    with one, contextlib.suppress(OSError):
                        one.setblocking(False)
                        one.send(door.busy)
                continue
            except asyncio.CancelledError:  # the service stops; this one came before that
                self._begin(connection, door)
                raise
            self._begin(connection, door).add_done_callback(lambda _task: places.release())

    def _begin(self, connection: socket.socket, door: Door) -> asyncio.Task[None]:
        task = asyncio.create_task(self._serve(connection, door.serve))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, connection: socket.socket, serve_: Callable[[socket.socket], Awaitable[None]]) -> None:
        with connection:
            try:
                connection.setblocking(False)
                await serve_(connection)
            except OSError:
                pass  # the peer went away or never said anything; there is nobody to tell
            except Exception as error:
                self._metrics.failed("internal")
                self._log(level="warning", detail=f"{type(error).__name__}: {error}")

    def _close(self, door: Door) -> None:
        """Whoever came before the door was closed is still served."""
        if door.path:
            with contextlib.suppress(OSError):
                os.unlink(door.path)
        for connection in waiting(door.listener):
            self._begin(connection, door)
        door.listener.close()

    # Behind the command's door.

    async def _command(self, connection: socket.socket) -> None:
        """Answer one client: "CODE LF LINE ." or a word that sends it off to do the work itself."""
        request = await self._receive(connection)
        reply = await self._answer(request, connection) if request else None
        del request  # its descriptors are the client's again before it goes on
        answer = DECLINED + b"\n"
        if reply:
            line = reply.line.encode("ascii", "replace") + b"\n" if reply.line else b""
            answer = b"%d\n%s." % (reply.code, line)
        await asyncio.get_running_loop().sock_sendall(connection, answer)

    async def _receive(self, connection: socket.socket) -> Request | None:
        """One client's request; None where it is another user's, or not one that we know how to answer."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", peer)
        if uid not in (0, os.geteuid()):
            return None
        async with asyncio.timeout(Gate.PATIENCE):
            return await receive(connection)

    async def _answer(self, request: Request, connection: socket.socket) -> Reply | None:
        """The reply to a client; None where it must do the work itself."""
        running = self._running
        environment = request.environment
        recipient = ""
        limit = asyncio.timeout(running.config.deadline)
        try:
            async with limit:
                call, filter_file = maildrop.read(request.arguments)
                # A home that hangs must not keep everybody waiting.
                directory = await self._blocking(directory_of, request.directory.number)
                if call.plain or directory is None:
                    return None
                path = config.find(call.config, environment.get("DELIVER_CONFIG", ""))
                if os.path.join(directory, path) != self._path:
                    return None
                if not maildrop.is_replaced(filter_file, running.config.maildrop.replaces, directory):
                    return None
                maildir = maildir_of(call, environment, running.config.maildir, directory)
                if _stranger(maildir):
                    return None
                async with self._gate.work(size_of(request.stdin.number)) as place:
                    source = await self._read(request.stdin, maildir)
                    if gone(connection):  # killed: then what its pipe gave may be half a message
                        raise Deferred("the command was killed before the message was read")
                    place.grow(source.size)
                    framing = read_framing(source.head)
                    envelope = envelope_of(call, environment, framing, maildir)
                    recipient = envelope.recipient
                    message = await self._message(running, source, framing, envelope.return_path)
                    outcome = await self._deliver(wiring.for_caller(running.site, environment), message, envelope)
            return exits.answer(outcome, environment if call.stop_after_spam else {})
        except Exception as error:
            return self._excuse(_TOO_LATE if limit.expired() else error, recipient)

    async def _read(self, stdin: Descriptor, maildir: str) -> Source:
        """A client's standard input: a file in place, anything else to its end, without a thread that it could hold."""
        if is_file(stdin.number):
            return await self._blocking(in_place, stdin)  # type: ignore[no-any-return]
        source = Source()
        try:
            while True:
                await readable(stdin.number)
                try:
                    chunk = os.read(stdin.number, CHUNK)
                except BlockingIOError:  # somebody else read it
                    continue
                if not chunk:
                    return source
                await add(source, chunk, [maildir], self._blocking)
        except OSError as error:
            raise Deferred(f"cannot read the message: {error}", "4.3.0 Unable to read message") from error

    # Behind LMTP's.

    async def _lmtp(self, connection: socket.socket) -> None:
        await Letterbox(connection, self._desk, self._stopping, self._idle).converse()

    def _desk(self) -> Desk:
        running = self._running

        async def look_up(address: str) -> users.Found | None:
            if running.config.users is None:
                raise Deferred("LMTP needs the table [users]", "4.3.5 Mail filter is not configured")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._lookups, _look_up, running.config.users, address)

        async def deliver_all(incoming: Incoming) -> Sequence[Reply]:
            until = asyncio.get_running_loop().time() + running.config.deadline
            limit = asyncio.timeout_at(until)
            try:
                async with self._gate.work(incoming.source.size):
                    async with limit:
                        message = await self._message(running, incoming.source, incoming.framing, incoming.return_path)
                    if len(incoming.envelopes) == 1:
                        return [await one(message, incoming.envelopes[0], until)]
                    # Each has its own time limit: that of all would take their answers from those who have the message.
                    return await asyncio.gather(*(one(message, envelope, until) for envelope in incoming.envelopes))
            except Exception as error:
                reply = self._excuse(_TOO_LATE if limit.expired() else error, incoming.envelopes[0].recipient)
                return [reply] * len(incoming.envelopes)

        async def one(message: Message, envelope: Envelope, until: float) -> Reply:
            limit = asyncio.timeout_at(until)
            try:
                async with limit:
                    return (await self._deliver(running.site, message, envelope)).reply
            except Exception as error:
                return self._excuse(_TOO_LATE if limit.expired() else error, envelope.recipient)

        return Desk(running.config, look_up, deliver_all, self._excuse, self._blocking)

    # Behind both.

    async def _message(self, running: Running, source: Source, framing: Framing, return_path: bytes) -> Message:
        """The message in ``source``, with its digest reckoned where scans will be kept by it."""
        kept = [one.max_size for one in running.site.scanners if isinstance(one, scan_once.ScanOnce)]

        def make() -> Message:
            message = Message(source, framing, return_path, wiring.forgeries(running.config))
            if message.size <= max(kept, default=0):
                message.digest()
            message.loops(())  # finds the fields of the header, which all recipients will ask for
            return message

        if source.size <= _AT_ONCE:
            return make()
        return await self._blocking(make)  # type: ignore[no-any-return]

    async def _deliver(self, site: Site, message: Message, envelope: Envelope) -> Outcome:
        settled: list[Outcome] = []
        with self._metrics.in_work():
            try:
                outcome = await deliver(site, message, envelope, settled.append)
            except asyncio.CancelledError:  # the deadline
                if not settled:
                    raise
                outcome = settled[0]
        self._metrics.delivered(outcome)
        return outcome

    def _excuse(self, error: Exception, recipient: str) -> Reply:
        """The reply for a delivery that failed, and its log line."""
        reply = exits.from_error(error)
        self._metrics.failed(reply.line.partition(" ")[0])
        detail = (error.detail or error.line) if isinstance(error, DeliverError) else f"{type(error).__name__}: {error}"
        self._log(level="warning", recipient=recipient, exit=reply.code, detail=detail)
        return reply

    async def _tell(self, connection: socket.socket) -> None:
        """GET /metrics in Prometheus' text format, GET /health; one request a connection."""
        loop = asyncio.get_running_loop()
        asked = b""
        async with asyncio.timeout(Gate.PATIENCE):
            while b"\r\n\r\n" not in asked and len(asked) < _GET_CAP:
                block = await loop.sock_recv(connection, _GET_CAP)
                if not block:
                    break
                asked += block
        match asked.split(b" ", 2)[:2]:
            case [b"GET", b"/metrics"]:
                status, body = "200 OK", self._metrics.text(self._running.site.scanners)
            case [b"GET", b"/health"]:
                status, body = "200 OK", "ok\n"
            case _:
                status, body = "404 Not Found", "/metrics or /health\n"
        head = f"HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n\r\n"
        await loop.sock_sendall(connection, (head + body).encode())


def _look_up(settings: Users, address: str) -> users.Found | None:
    """Whose Maildir it is, before anything is done there: large messages are spooled in it."""
    found = users.look_up(settings, address)
    if found and _stranger(found.maildir):
        words = f"{found.maildir} is another user's: a service of root's delivers root's mail alone"
        raise Deferred(words, "4.3.5 Mail filter is not configured")
    return found


def _stranger(maildir: str) -> bool:
    """Whether we are root and the Maildir is not root's.

    The owner could not read what root writes; and root would follow what the owner made to where root alone may go.
    """
    if os.geteuid() != 0:
        return False
    try:
        return os.stat(maildir).st_uid != 0
    except OSError:
        return False  # the delivery will say what is wrong


def serve(path: str) -> int:
    """Run a service with the configuration at ``path`` until it is stopped; the exit code."""
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(Service(os.path.abspath(path)).run())
    except DeliverError as error:
        print(error.detail, file=sys.stderr)  # noqa: T201 - there is no log yet where the configuration is wrong
        return 1
    # Without waiting for threads: whoever asked for what they still do has been told to try again.
    os._exit(0)
