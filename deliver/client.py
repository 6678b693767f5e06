"""The command as a client of `deliver serve`: hands over standard input and working directory, exits with the answer.

Run by path, compiled, isolated and without site (`python -I -S client.pyc SOCKET ARGUMENT...`): starting Python is
most of what a delivery through the service costs, so this file uses modules that are compiled into the interpreter and
`_socket`, and nothing else. Where there is no service for us it becomes the command that does the work itself; once
the request is sent, any failure is "try again".
"""

import _signal  # type: ignore[import-not-found]  # typeshed has it as signal alone
import _socket
import posix
import sys

WAIT = 950
"""Seconds for everything: more than the service's longest deadline (15 min), less than Postfix's 1000."""

NAMES = b"SENDER NEWSENDER RECIPIENT LOCAL HOST EXT EXTENSION DTLINE RPLINE UFLINE HOME PATH DELIVER_CONFIG".split()
"""What of the environment tells who a message is for; the rest is none of the service's business."""

FAILED = b"4.3.0 Temporary failure (#4.3.0)\n"
VERSION = b"deliver1"
DECLINED = b"decline"


def main(path: str, arguments: list[str]) -> None:
    """Ask the service at ``path``; never returns."""
    _signal.signal(_signal.SIGALRM, _give_up)
    _signal.alarm(WAIT)
    connection = _connect(path)
    answer = _ask(connection, arguments) if connection else DECLINED
    code, _, line = answer.partition(b"\n")
    if code == DECLINED:
        posix.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "-m", "deliver", *arguments])
    if code not in (b"0", b"75", b"99", b"100") or not line.endswith(b"."):
        code, line = b"75", FAILED + b"."  # the service went away while it worked
    _leave(int(code), line[:-1])


def _connect(path: str) -> "_socket.socket | None":
    """Connect to a service that runs as us or as root; None if there is none, or a standard descriptor is missing."""
    try:
        for fd in (0, 1, 2):
            posix.fstat(fd)  # or the socket would take its place
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.settimeout(WAIT)  # with a timeout, connecting does not wait for a place in a full backlog (EAGAIN)
        connection.connect(path)
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    except OSError:
        return None
    return connection if int.from_bytes(peer[4:8], sys.byteorder) in (0, posix.geteuid()) else None


def _ask(connection: "_socket.socket", arguments: list[str]) -> bytes:
    """What the service says to "LENGTH VERSION COUNT ARGUMENT... NAME=VALUE...", b"" if it went away.

    DECLINED where it had no chance to begin.
    """
    environment = posix.environ
    said = [b"%s=%s" % (name, environment[name]) for name in NAMES if name in environment]
    given = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
    payload = b"\0".join([VERSION, b"%d" % len(given), *given, *said])
    request = len(payload).to_bytes(4, "big") + payload
    try:
        directory = posix.open(b".", posix.O_PATH | posix.O_DIRECTORY)  # needs no right to read it
        descriptors = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, directory))
        sent = connection.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)])
    except OSError:
        return DECLINED
    answer = b""
    try:
        if sent < len(request):
            connection.sendall(request[sent:])
    except OSError:  # what it has said tells why it reads no more
        pass
    try:
        while block := connection.recv(4096):
            answer += block
    except OSError:  # ECONNRESET behind the answer: it did not read the whole request
        return answer
    return answer


def _leave(code: int, line: bytes) -> None:
    """Read what is left of standard input, since preline(1) takes a broken pipe for a failure; answer, and go."""
    try:
        if posix.fstat(0).st_mode & 0o170000 != 0o100000:  # a regular file needs no reading (inode(7))
            while posix.read(0, 65536):
                pass
    except OSError:
        pass
    try:
        if line:
            posix.write(1, line)
    finally:  # whoever does not listen gets the exit code all the same
        posix._exit(code)  # noqa: SLF001 - os._exit under its own name


def _give_up(_number: int, _frame: object) -> None:
    posix._exit(75)  # noqa: SLF001


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
