"""`deliver serve`: one process that delivers for many, for one uid's mail, through two doors.

The command's door is a UNIX socket: a client hands over its standard input and working directory as descriptors
(unix(7), SCM_RIGHTS) and exits with the answer. The other door is LMTP (RFC 2033). Behind both lies the same story as
in a delivery without a service; scans of one message are shared by its recipients.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from deliver import config, exits, maildrop, wiring
from deliver.client import DECLINED, NAMES, VERSION
from deliver.config import Config
from deliver.envelope import envelope_of, maildir_of
from deliver.errors import Deferred, DeliverError
from deliver.letterbox import Letterbox
from deliver.message import Message, Source, read_framing
from deliver.metrics import Metrics
from deliver.pipeline import Site, deliver
from deliver.values import Envelope, Outcome, Reply

REQUEST_CAP = 1024 * 1024
"""Bytes of one request: arguments and environment, of which the kernel allows 128 KiB each."""

PATIENCE = 30.0
"""Seconds that a request waits for its turn, then it is told to come again."""

BUSY = "4.3.2 Mail filter is busy"


class Gate:
    """Lets so many messages, with so many bytes together, be in work; others wait PATIENCE seconds."""

    def __init__(self, messages: int, size: int, metrics: Metrics) -> None:
        self._messages = messages
        self._size = size
        self._metrics = metrics
        self._turn = asyncio.Condition()
        self.messages = 0
        self.size = 0

    @contextlib.asynccontextmanager
    async def work(self, size: int) -> AsyncIterator[None]:
        """Be in work with a message of ``size`` bytes; one alone may be larger than the limit. Raises Deferred."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE), self._turn:
                await self._turn.wait_for(lambda: self._fits(size))
                self.messages += 1
                self.size += size
        except TimeoutError:
            raise Deferred("over the limit of messages or bytes in work", BUSY) from None
        self._metrics.waited(time.monotonic() - begun)
        try:
            yield
        finally:
            async with self._turn:
                self.messages -= 1
                self.size -= size
                self._turn.notify_all()

    def _fits(self, size: int) -> bool:
        return self.messages < self._messages and (not self.messages or self.size + size <= self._size)


class Request(NamedTuple):
    """What a client asks: its command line and environment, its standard input and its working directory."""

    arguments: list[str]
    environment: dict[str, str]
    stdin: int
    directory: int


class Running(NamedTuple):
    """What follows from one reading of the configuration; a reload makes a new one, deliveries keep theirs."""

    config: Config
    site: Site
    watchers: tuple[asyncio.Task[None], ...]


class Service:
    """A running service. ``path`` is its configuration's; raises NotConfigured where that is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._metrics = Metrics()
        self._running = self._load()
        limits = self._running.config.service
        self._gate = Gate(limits.messages, limits.bytes, self._metrics)
        self._connections = asyncio.Semaphore(limits.connections)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then finish what is in work."""
        loop = asyncio.get_running_loop()
        # Each message in work may have one thread waiting for clamd and one for a disk.
        workers = 2 * self._running.config.service.messages + 8
        loop.set_default_executor(ThreadPoolExecutor(workers, "deliver"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        service = self._running.config.service
        doors = [_listen(f"unix:{service.socket}", 0o600)] if service.socket else []
        letterboxes = [_listen(address, 0o666) for address in service.lmtp]
        windows = [_listen(address, 0o600) for address in service.metrics]
        accepting = [
            *(asyncio.create_task(self._accept(door, self._command)) for door in doors),
            *(asyncio.create_task(self._accept(door, self._lmtp)) for door in letterboxes),
            *(asyncio.create_task(self._accept(door, self._tell)) for door in windows),
        ]
        self._log(level="info", detail="ready", uid=os.geteuid())
        _notify("READY=1")
        await self._stopping.wait()
        _notify("STOPPING=1")
        for task in accepting:
            task.cancel()
        for door in (*doors, *letterboxes, *windows):
            _close(door)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._running.config.deadline)
        self._log(level="info", detail="stopped")

    def _load(self) -> Running:
        settings = config.load(self._path)
        site, watches = wiring.resident(settings, asyncio.to_thread, self._metrics)
        return Running(settings, site, tuple(asyncio.create_task(watch()) for watch in watches))

    def _reload(self) -> None:
        """SIGHUP: a wrong file changes nothing. Sockets and limits stay as they are until a restart."""
        before = self._running
        try:
            self._running = self._load()
        except DeliverError as error:
            self._log(level="warning", detail=f"still with the old configuration: {error.detail}")
            return
        for watcher in before.watchers:
            watcher.cancel()
        self._log(level="info", detail="configuration read again")

    def _log(self, **record: Any) -> None:
        self._running.site.log(**record)

    async def _accept(self, door: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._connections.acquire()
            try:
                connection, _ = await loop.sock_accept(door)
            except OSError as error:  # EMFILE: those in work will free descriptors
                self._connections.release()
                self._log(level="warning", detail=f"accept: {error}")
                await asyncio.sleep(0.1)
                continue
            except BaseException:
                self._connections.release()
                raise
            task = asyncio.create_task(self._serve(connection, serve))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            connection.setblocking(False)
            await serve(connection)
        except OSError:
            pass  # the peer went away; whatever it asked for has been answered to nobody
        except Exception as error:
            self._metrics.failed("internal")
            self._log(level="warning", detail=f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            self._connections.release()

    async def _command(self, connection: socket.socket) -> None:
        """Answer one client: "CODE LF LINE ." or a word that sends it off to do the work itself."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", peer)
        if uid not in (0, os.geteuid()):
            return
        async with asyncio.timeout(PATIENCE):
            request = await _receive(connection)
        if request is None:
            return
        try:
            reply = await self._answer(request)
        finally:
            os.close(request.stdin)
            os.close(request.directory)
        loop = asyncio.get_running_loop()
        if reply is None:
            await loop.sock_sendall(connection, DECLINED + b"\n")
            return
        line = reply.line.encode("ascii", "replace") + b"\n" if reply.line else b""
        await loop.sock_sendall(connection, b"%d\n%s." % (reply.code, line))

    async def _answer(self, request: Request) -> Reply | None:
        """The reply to a client; None where it must do the work itself."""
        running = self._running
        recipient = ""
        try:
            call, filter_file = maildrop.read(request.arguments)
            if call.plain or config.find(call.config, request.environment.get("DELIVER_CONFIG", "")) != self._path:
                return None
            directory = _directory(request.directory)
            if directory is None:
                return None
            if not maildrop.is_replaced(filter_file, running.config.maildrop.replaces, directory):
                return None
            maildir = maildir_of(call, request.environment, running.config.maildir, directory)
            async with asyncio.timeout(running.config.deadline):
                async with self._gate.work(_size(request.stdin)):
                    source = await asyncio.to_thread(
                        Source.read, request.stdin, lambda: wiring.spool(maildir), PATIENCE * 2
                    )
                    try:
                        framing = read_framing(source.head)
                        envelope = envelope_of(call, request.environment, framing, maildir)
                        recipient = envelope.recipient
                        message = Message(source, framing, envelope.return_path, wiring.forgeries(running.config))
                        site = wiring.for_caller(running.site, request.environment)
                        outcome = await self._deliver(site, message, envelope)
                    finally:
                        source.close()
            return exits.answer(outcome, request.environment if call.stop_after_spam else {})
        except TimeoutError:
            return self._excuse(Deferred("the deadline", "4.4.7 Delivery took too long"), recipient)
        except Exception as error:
            return self._excuse(error, recipient)

    async def _deliver(self, site: Site, message: Message, envelope: Envelope) -> Outcome:
        with self._metrics.in_work():
            outcome = await deliver(site, message, envelope)
        self._metrics.delivered(outcome)
        return outcome

    def _excuse(self, error: Exception, recipient: str) -> Reply:
        """The reply for a delivery that failed, and its log line."""
        reply = exits.from_error(error)
        self._metrics.failed(reply.line.partition(" ")[0])
        known = isinstance(error, DeliverError)
        detail = (error.detail or error.line) if isinstance(error, DeliverError) else f"{type(error).__name__}: {error}"
        level = "warning" if known or reply.code else "info"
        self._log(level=level, recipient=recipient, exit=reply.code, detail=detail)
        return reply

    async def _lmtp(self, connection: socket.socket) -> None:
        running = self._running

        async def one(message: Message, envelope: Envelope) -> Reply:
            try:
                async with asyncio.timeout(running.config.deadline):
                    return (await self._deliver(running.site, message, envelope)).reply
            except TimeoutError:
                return self._excuse(Deferred("the deadline", "4.4.7 Delivery took too long"), envelope.recipient)
            except Exception as error:
                return self._excuse(error, envelope.recipient)

        await Letterbox(running.config, self._gate, one, self._stopping).converse(connection)

    async def _tell(self, connection: socket.socket) -> None:
        """GET /metrics in Prometheus' text format, GET /health; one request a connection."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            asked = (await loop.sock_recv(connection, 4096)).split(b" ", 2)
        if len(asked) < 2 or asked[0] != b"GET" or asked[1] not in (b"/metrics", b"/health"):
            head, body = b"404 Not Found", b"/metrics or /health\n"
        elif asked[1] == b"/health":
            head, body = b"200 OK", b"ok\n"
        else:
            head, body = b"200 OK", self._metrics.text(self._running.site.scanners).encode()
        answer = b"HTTP/1.0 %s\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n\r\n%s"
        await loop.sock_sendall(connection, answer % (head, len(body), body))


async def _receive(connection: socket.socket) -> Request | None:
    """One client's request; None where it is not one."""
    loop = asyncio.get_running_loop()
    payload = bytearray()
    descriptors: list[int] = []
    try:
        while len(payload) < 4 or len(payload) < 4 + int.from_bytes(payload[:4], "big"):
            if len(payload) > REQUEST_CAP:
                raise ValueError("the request is too large")
            try:
                block, found, _, _ = socket.recv_fds(connection, 65536, 2)
            except BlockingIOError:
                await _readable(loop, connection)
                continue
            descriptors += found
            if not block:
                raise ValueError("the request is cut")
            payload += block
        words = bytes(payload[4:]).split(b"\0")
        count = int(words[1])
        if words[0] != VERSION or len(descriptors) != 2 or count < 0:
            raise ValueError("not a request of this version")
        given = [word.decode("utf-8", "surrogateescape") for word in words[2 : 2 + count]]
        pairs = [word.partition(b"=") for word in words[2 + count :]]
        environment = {
            name.decode(): value.decode("utf-8", "surrogateescape") for name, _, value in pairs if name in NAMES
        }
    except (ValueError, IndexError):
        for fd in descriptors:
            os.close(fd)
        return None
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return Request(given, environment, *descriptors)


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _directory(fd: int) -> str | None:
    """The absolute path of a client's working directory; None where that path is not it, seen from here."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        here, there = os.stat(path), os.fstat(fd)
    except OSError:
        return None
    return path if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else None


def _size(fd: int) -> int:
    """Bytes of a message in a file; of one in a pipe nobody knows, and it does not stay in memory."""
    try:
        state = os.fstat(fd)
    except OSError:
        return 0
    return state.st_size if stat.S_ISREG(state.st_mode) else 0


def _listen(address: str, mode: int) -> socket.socket:
    """Listen at "unix:/path" or "tcp:host:port"; a socket that nobody listens at is replaced. Raises Deferred."""
    try:
        if address.startswith("unix:"):
            return _listen_unix(address.removeprefix("unix:"), mode)
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        return socket.create_server(
            (host.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, ValueError) as error:
        raise Deferred(f"cannot listen at {address}: {error}", "4.3.5 Mail filter is not configured") from error


def _listen_unix(path: str, mode: int) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.connect(path)
        raise Deferred(f"{path}: somebody is listening there already")
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        door.bind(path)
    finally:
        os.umask(before)
    door.listen(1024)
    door.setblocking(False)
    return door


def _close(door: socket.socket) -> None:
    name = door.getsockname()
    door.close()
    if isinstance(name, str) and name:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it does not listen."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
        connection.connect("\0" + where[1:] if where.startswith("@") else where)
        connection.sendall(state.encode())


def serve(path: str) -> int:
    """Run a service with the configuration at ``path`` until it is stopped; the exit code."""
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    async def run() -> None:
        await Service(path).run()

    try:
        asyncio.run(run())
    except DeliverError as error:
        print(error.detail, file=sys.stderr)  # noqa: T201 - there is no log yet where the configuration is wrong
        return 1
    return 0
