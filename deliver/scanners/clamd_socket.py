"""The clamd package's client, its known faults mended: one deadline, whole writes, a bounded and complete answer.

clamd 1.0.2 calls ``send()`` and ignores short writes (which breaks INSTREAM's framing), sends 1 KiB at a time, sets its
timeout after connecting and per read, knows IPv4 only, takes an empty or cut answer for one, and loses the answer
"size limit exceeded" to the broken pipe it comes with. The protocol is clamd(8)'s.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deliver.scanners.address import Address, TcpAddress
from deliver.scanners.pool import BadAnswer, printable

if TYPE_CHECKING:
    import clamd
else:
    # While it is imported, clamd imports pkg_resources only to learn its own version, and lives without it: that
    # costs 100 ms and 15 MB where setuptools is installed, and some of its versions write a UserWarning to stderr,
    # which getmail takes for a failed delivery.
    _before = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = None
    try:
        import clamd
    finally:
        if _before is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = _before

_CHUNK = 128 * 1024  # bytes in one INSTREAM chunk
_ANSWER_LIMIT = 4096  # bytes; clamd's answers to INSTREAM and VERSION are one short line
_RETRY = 0.02  # seconds
_CLOSING = 1.0  # seconds that a peer may take to close behind its answer; a proxy may keep the connection
_QUOTED = 120  # characters of a strange answer that the log shows


class _Mended:
    """What both kinds of socket share: everything behind the connection, each step within what is left of the time."""

    clamd_socket: socket.socket
    deadline: float

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left

    def _send_command(self, cmd: str, *_args: str) -> None:
        # "n" asks for an answer that ends in a newline (clamd(8)).
        self._send(f"n{cmd}\n".encode("ascii"))

    def _send(self, data: bytes) -> None:
        self.clamd_socket.settimeout(self._left())
        self.clamd_socket.sendall(data)

    def _recv_response(self) -> str:
        return self._read_line()[0]

    def _read_line(self) -> tuple[str, bool]:
        """Return the one line that is the answer, without its newline, and whether it came with a reset.

        A reset (instead of an end) means that the peer closed without having read all that we sent.
        """
        answer = bytearray()
        reset = False
        while len(answer) <= _ANSWER_LIMIT:
            whole = b"\n" in answer
            self.clamd_socket.settimeout(min(self._left(), _CLOSING) if whole else self._left())
            try:
                block = self.clamd_socket.recv(_ANSWER_LIMIT)
            except TimeoutError:
                if whole:
                    break
                raise
            except ConnectionResetError:
                reset = True
                break
            if not block:  # clamd closes behind its answer
                break
            answer += block
        line, newline, rest = bytes(answer).partition(b"\n")
        if len(answer) > _ANSWER_LIMIT:
            raise BadAnswer(f"the answer has more than {_ANSWER_LIMIT} bytes")
        if not answer:
            raise BadAnswer("the connection was closed without an answer", "did not answer")
        if not newline:
            raise BadAnswer(f"the answer is cut: {_quote(line)}")
        if rest:
            raise BadAnswer(f"the answer has more than one line: {_quote(bytes(answer))}")
        return line.decode("latin-1"), reset

    def instream(self, buff: Iterable[bytes]) -> str:
        """Send the pieces of a message and return clamd's answer, a line such as "stream: OK".

        Raises BadAnswer, TimeoutError or another OSError. Where clamd closed before it had read everything, what it
        said is still there to be read; but only an error may be said of a message that was not read to its end.
        """
        self._init_socket()
        try:
            unread = False
            try:
                self._send_command("INSTREAM")
                for chunk in _chunks(buff):
                    self._send(struct.pack("!L", len(chunk)) + chunk)
                self._send(struct.pack("!L", 0))
            except ConnectionError:
                unread = True
            line, reset = self._read_line()
        finally:
            self.clamd_socket.close()
        if (unread or reset) and not line.endswith("ERROR"):
            raise BadAnswer(f"said {_quote(line.encode('latin-1'))} before it had read the whole message")
        return line

    def _init_socket(self) -> None:
        raise NotImplementedError


class MendedUnixSocket(_Mended, clamd.ClamdUnixSocket):  # type: ignore[misc]  # the package has no types
    """One conversation with the clamd at a UNIX socket, to be over by ``deadline`` (``time.monotonic()``)."""

    def __init__(self, path: str, deadline: float) -> None:
        super().__init__(path)
        self.deadline = deadline

    def _init_socket(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            while True:
                connection.settimeout(self._left())
                try:
                    connection.connect(self.unix_socket)
                    break
                except BlockingIOError:
                    # The backlog is full; a UNIX socket with a timeout says so at once (connect(2), EAGAIN).
                    time.sleep(min(_RETRY, self._left()))
        except BaseException:
            connection.close()
            raise
        self.clamd_socket = connection


class MendedNetworkSocket(_Mended, clamd.ClamdNetworkSocket):  # type: ignore[misc]
    """One conversation with the clamd at a host name, IPv4 or IPv6 address."""

    def __init__(self, host: str, port: int, deadline: float) -> None:
        super().__init__(host, port)
        self.deadline = deadline

    def _init_socket(self) -> None:
        self.clamd_socket = socket.create_connection((self.host, self.port), self._left())


def open_socket(address: Address, deadline: float) -> MendedUnixSocket | MendedNetworkSocket:
    """Return a client for one conversation; it connects when it is used."""
    if isinstance(address, TcpAddress):
        return MendedNetworkSocket(address.host, address.port, deadline)
    return MendedUnixSocket(address.path, deadline)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut the pieces to size. None is empty: a chunk of length 0 would end the stream."""
    for piece in pieces:
        for start in range(0, len(piece), _CHUNK):
            yield piece[start : start + _CHUNK]


def _quote(answer: bytes) -> str:
    return f'"{printable(answer.decode("latin-1"), _QUOTED)}"'
