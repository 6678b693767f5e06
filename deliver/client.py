"""The command as a client of `deliver serve`: hands over standard input and working directory, exits with the answer.

Run by path, isolated and without site (`python -I -S client.py SOCKET ARGUMENT...`): starting Python is most of what a
delivery through the service costs, so this file uses modules that are compiled into the interpreter and `_socket`, and
nothing else. Where there is no service for us it becomes the command that does the work itself; once the request is
sent, any failure is "try again".
"""

import _socket
import posix
import sys

WAIT = 600.0
"""Seconds for the answer; the service's own deadline is below Postfix's 1000 s and ours must not cut it short."""

NAMES = b"SENDER NEWSENDER RECIPIENT LOCAL HOST EXT EXTENSION DTLINE RPLINE UFLINE HOME PATH DELIVER_CONFIG".split()
"""What of the environment tells who a message is for; the rest is none of the service's business."""

FAILED = b"4.3.0 Temporary failure (#4.3.0)\n"
VERSION = b"deliver1"
DECLINED = b"decline"


def main(path: str, arguments: list[str]) -> None:
    """Ask the service at ``path``; never returns."""
    connection = _connect(path)
    if connection is None:
        _work_alone(arguments)
        return
    environment = posix.environ
    said = [b"%s=%s" % (name, environment[name]) for name in NAMES if name in environment]
    given = [argument.encode("utf-8", "surrogateescape") for argument in arguments]
    payload = b"\0".join([VERSION, b"%d" % len(given), *given, *said])
    directory = -1
    try:
        directory = posix.open(b".", posix.O_RDONLY | posix.O_DIRECTORY)
        descriptors = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, directory))
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)]
        sent = connection.sendmsg([len(payload).to_bytes(4, "big") + payload], rights)
    except OSError:
        _work_alone(arguments)  # nothing was sent: the service cannot have begun
        return
    try:
        rest = memoryview(len(payload).to_bytes(4, "big") + payload)[sent:]
        if rest:
            connection.sendall(rest)
        answer = b""
        while block := connection.recv(4096):
            answer += block
        code, _, line = answer.partition(b"\n")
        if code == DECLINED:
            _work_alone(arguments)
            return
        if code not in (b"0", b"75", b"99", b"100") or not line.endswith(b"."):
            raise OSError("the service went away")
    except OSError:
        code, line = b"75", FAILED + b"."
        _drain()
    if line[:-1]:
        try:
            posix.write(1, line[:-1])
        except OSError:
            code = code or b"75"
    posix._exit(int(code))  # noqa: SLF001 - os._exit under its own name


def _connect(path: str) -> "_socket.socket | None":
    """Connect to a service that runs as us or as root; None if there is none."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(WAIT)
        connection.connect(path)
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        posix.fstat(0)
    except OSError:
        return None
    uid = int.from_bytes(peer[4:8], sys.byteorder)
    return connection if uid in (0, posix.geteuid()) else None


def _work_alone(arguments: list[str]) -> None:
    posix.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "-m", "deliver", *arguments])


def _drain() -> None:
    """preline(1) takes a broken pipe for a failure of its own; a regular file needs no reading."""
    try:
        if posix.fstat(0).st_mode & 0o170000 != 0o100000:
            while posix.read(0, 65536):
                pass
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
