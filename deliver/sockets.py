"""Sockets to listen at, and the word to whoever waits for us to listen (sd_notify(3))."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

from deliver.errors import Deferred


def waiting(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that nobody has accepted yet."""
    with contextlib.suppress(OSError):
        while True:
            yield listener.accept()[0]


def listen(address: str, mode: int) -> tuple[socket.socket, str]:
    """Listen at "unix:/path" or "tcp:host:port"; returns the path, "" for TCP. Raises Deferred with what to do.

    A socket that nobody listens at is replaced.
    """
    path = address.removeprefix("unix:") if address.startswith("unix:") else ""
    try:
        if path:
            return _listen_unix(path, mode), path
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        host = host.strip("[]")
        door = socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, ValueError) as error:
        directory, uid = os.path.dirname(path), os.geteuid()
        advice = ""
        if isinstance(error, FileNotFoundError):
            advice = f"; make the directory {directory} first, for uid {uid}"
        elif isinstance(error, PermissionError) and path:
            advice = f"; uid {uid} must be able to write to {directory}"
        elif isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            advice = "; it is taken by something else: choose another, or remove that"
        words = getattr(error, "strerror", "") or error
        raise Deferred(f"[service]: cannot listen at {address}: {words}{advice}") from error
    door.setblocking(False)
    return door, ""


def _listen_unix(path: str, mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.setblocking(False)
                listens = probe.connect_ex(path) in (0, errno.EAGAIN, errno.EACCES)
            if listens:
                raise Deferred(f"[service]: somebody is listening at {path} already: is the service running?")
            os.unlink(path)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        door.setblocking(False)
        door.bind(path)
        door.listen(1024)
        os.chmod(path, mode)
    except BaseException:
        door.close()
        raise
    return door


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it does not listen."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
        connection.connect("\0" + where[1:] if where.startswith("@") else where)
        connection.sendall(state.encode())
