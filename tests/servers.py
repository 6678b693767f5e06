"""Real daemons, private to the tests, and scripted ones that misbehave.

Each is a context manager: ``with servers.clamd(directory) as server: ... server.address``. Everything lies below the
given directory, listens on a UNIX socket there and is gone afterwards. Run by root, the daemons are an unprivileged
user's; ``scratch()`` makes a directory that belongs to them.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

from scanned import EICAR

_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
_STOPPING = 15.0  # seconds
_POLL = 0.02  # seconds


class Server(NamedTuple):
    """A running daemon: ``address`` as in the configuration ("unix:/path"), its process, and what it logged so far."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path


def unprivileged() -> dict[str, Any]:
    """What makes subprocess start a program as nobody when the caller is root; nothing otherwise."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def find(program: str) -> str | None:
    """The path of a program, also of those in sbin, which an ordinary user's PATH leaves out."""
    return shutil.which(program, path=_PATH)


def needs(program: str) -> str:
    """The path of a program that a test cannot do without: where it is missing, skip the test; under CI, fail."""
    return find(program) or lacking(f"{program} is not installed (make setup)")


def lacking(reason: str) -> NoReturn:
    """Something that a Debian package has is missing: skip the test; under CI, fail."""
    import pytest  # not for `make demo`

    fails = os.environ.get("CI") == "true"
    raise (pytest.fail.Exception if fails else pytest.skip.Exception)(reason)


@contextmanager
def scratch() -> Iterator[Path]:
    """A fresh directory of the unprivileged user. Its path is short, since a socket's has at most 107 bytes (unix(7));
    and other users can reach it, which pytest's tmp_path forbids.
    """
    directory = Path(tempfile.mkdtemp(prefix="deliver-", dir="/tmp"))  # TMPDIR may be long or private
    try:
        _give(directory)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def clamd(directory: Path, *, stream_max_length: str = "25M") -> Iterator[Server]:
    """A clamd whose only signature is EICAR's. ``stream_max_length`` is clamd.conf(5)'s StreamMaxLength."""
    program = needs("clamd")
    home = _home(directory, "clamd")
    database = home / "database"
    database.mkdir()
    # The extended format, NAME:TARGET:OFFSET:HEX (https://docs.clamav.net/manual/Signatures/ExtendedSignatures.html):
    # any file, anywhere in it.
    (database / "test.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.hex()}\n")
    path = home / "s"
    settings = {
        "Foreground": "yes",
        "LocalSocket": path,
        "DatabaseDirectory": database,
        "TemporaryDirectory": home,
        "StreamMaxLength": stream_max_length,
        "MaxThreads": 4,
    }
    configuration = home / "clamd.conf"
    configuration.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    _give(home, database, database / "test.ndb", configuration)
    command = [program, f"--config-file={configuration}"]
    with _running(command, home, f"unix:{path}", b"nPING\n", b"PONG\n", 60) as server:
        yield server


@contextmanager
def spamd(directory: Path, *more: str) -> Iterator[Server]:
    """A spamd with SpamAssassin's own rules, without network tests and users' preferences, that scans two at once.

    ``more`` are options for it, in which {home} is its own directory.
    """
    program = needs("spamd")
    home = _home(directory, "spamd")
    path = home / "s"
    command = [program, "--local", "--nouser-config", f"--socketpath={path}", "--syslog=stderr"]
    command += ["--min-children=2", "--max-children=2", "--min-spare=1"]
    command += [option.replace("{home}", str(home)) for option in more]
    # It listens long before it has compiled its rules; what it has not answered waits in the backlog.
    ping = (b"PING SPAMC/1.5\r\n\r\n", b"SPAMD/1.5 0 PONG\r\n")
    with _running(command, home, f"unix:{path}", *ping, 60) as server:
        yield server


def _home(directory: Path, name: str) -> Path:
    home = directory / name
    home.mkdir()
    _give(home)
    return home


def _give(*paths: Path) -> None:
    """Make the unprivileged user the owner."""
    if user := unprivileged():
        for path in paths:
            os.chown(path, user["user"], user["group"])


@contextmanager
def _running(
    command: list[str], home: Path, address: str, ping: bytes, pong: bytes, seconds: float
) -> Iterator[Server]:
    environment = {"PATH": _PATH, "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C"}
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that its children can be ended with it, should it not do that itself
            **unprivileged(),
        )
    try:
        _wait_until_ready(process, address.removeprefix("unix:"), ping, pong, time.monotonic() + seconds, log)
        yield Server(address, process, log)
    finally:
        _stop(process)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return as soon as ``condition`` holds; fail where it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(_POLL)


def listens(path: Path) -> bool:
    """Whether somebody listens at a UNIX socket; between bind(2) and listen(2) it is there and nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _wait_until_ready(
    process: subprocess.Popen[bytes], path: str, ping: bytes, pong: bytes, deadline: float, log: Path
) -> None:
    while (left := deadline - time.monotonic()) > 0:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, suppress(OSError):
            connection.settimeout(left)
            connection.connect(path)
            connection.sendall(ping)
            if connection.recv(len(pong), socket.MSG_WAITALL) == pong:
                return
        with suppress(subprocess.TimeoutExpired):  # its end is an event; its listening is none
            process.wait(_POLL)
            break
    raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOPPING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # what it may have left behind, in the session that we made for it
        os.killpg(process.pid, signal.SIGKILL)


class Peer:
    """One connection to a Scripted server, as its steps see it."""

    def __init__(self, connection: socket.socket, stopped: threading.Event) -> None:
        self.connection = connection
        self.stopped = stopped
        self.received = bytearray()
        self.done = threading.Event()  # all steps are, or the client has gone

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; b"" at the end."""
        data = self.connection.recv(size)
        self.received += data
        return data

    def read_exactly(self, size: int) -> bytes:
        """``size`` bytes, fewer at the end."""
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data


BehaviourStep = Callable[[Peer], object]


class Scripted:
    """A server that does the same ``steps`` with each connection, in a thread of its own, and then closes it.

    It listens on a UNIX socket in ``directory``, or on a free port of ``host``. ``peers`` are its connections so far.
    No steps at all: it accepts and closes at once.
    """

    _count = 0

    def __init__(self, directory: Path, *steps: BehaviourStep, host: str = "") -> None:
        self.steps = steps
        self.peers: list[Peer] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
            shown = f"[{host}]" if ":" in host else host
            self.address = f"tcp:{shown}:{self._listener.getsockname()[1]}"
        else:
            Scripted._count += 1
            path = directory / f"peer{Scripted._count}"
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            path.chmod(0o666)
            self._listener.listen()
            self.address = f"unix:{path}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # Ends what waits in accept() or recv(), in whatever thread.
        for connection in (self._listener, *(peer.connection for peer in self.peers)):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(connection, self._stopped)
            self.peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        with peer.connection, suppress(OSError):
            for step in self.steps:
                step(peer)
        peer.done.set()


@contextmanager
def all_of(*peers: Scripted) -> Iterator[tuple[str, ...]]:
    """Run several; yields their addresses, in order: a pool."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(peer).address for peer in peers)


# Steps of a Scripted server.


def read_all(peer: Peer) -> None:
    """Read until the client has shut down its side, as spamd's clients do behind their request."""
    while peer.read(65536):
        pass


def read_stream(peer: Peer) -> None:
    """Read a whole INSTREAM request of clamd's, up to the chunk of length 0; ``peer.received`` is then the message."""
    while peer.read_exactly(1) not in (b"\n", b""):
        pass
    message = bytearray()
    while size := int.from_bytes(peer.read_exactly(4)):
        message += peer.read_exactly(size)
    peer.received = message


def read_some(size: int) -> BehaviourStep:
    """Read ``size`` bytes and no more."""
    return lambda peer: peer.read_exactly(size)


def answer(data: bytes) -> BehaviourStep:
    """Say something."""
    return lambda peer: peer.connection.sendall(data)


def wait(seconds: float) -> BehaviourStep:
    """Think."""
    return lambda peer: peer.stopped.wait(seconds)


def hang(peer: Peer) -> None:
    """Say nothing and read nothing until the test is over."""
    peer.stopped.wait()


def drip(data: bytes, interval: float) -> BehaviourStep:
    """Say something, one byte every ``interval`` seconds."""

    def step(peer: Peer) -> None:
        for byte in data:
            if peer.stopped.wait(interval):
                return
            peer.connection.sendall(bytes((byte,)))

    return step


def endless(start: bytes, again: bytes) -> BehaviourStep:
    """Say ``start``, then ``again`` for ever: until the client has had enough."""

    def step(peer: Peer) -> None:
        peer.connection.sendall(start)
        while not peer.stopped.is_set():
            peer.connection.sendall(again)

    return step
