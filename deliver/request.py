"""What a client (client.py) asks of the service: its half of the conversation, read from a UNIX socket.

The client's standard input and working directory come as descriptors (unix(7), SCM_RIGHTS).
"""

import asyncio
import os
import socket
import stat
import weakref
from typing import NamedTuple

from deliver.client import NAMES, VERSION
from deliver.errors import Deferred
from deliver.message import Source

REQUEST_CAP = 8 * 1024 * 1024
"""Bytes of one request: more than execve(2) lets arguments and environment have."""


class Descriptor:
    """A descriptor that is closed with the last who holds it.

    A thread may read on when those who waited for it have given up, and must not find another message behind its
    number.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)

    def stay(self) -> None:
        """Nothing: whoever may still call this keeps it open."""


class Request(NamedTuple):
    """What a client asks: its command line and environment, its standard input and its working directory."""

    arguments: list[str]
    environment: dict[str, str]
    stdin: Descriptor
    directory: Descriptor


async def receive(connection: socket.socket) -> Request | None:
    """One client's request (client.py writes it); None where it is not one, which is for the client to know."""
    payload = bytearray()
    descriptors: list[Descriptor] = []
    while len(payload) < 4 or len(payload) < 4 + int.from_bytes(payload[:4], "big"):
        if len(payload) > REQUEST_CAP:
            return None
        try:
            block, found, _, _ = socket.recv_fds(connection, 65536, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await readable(connection.fileno())
            continue
        descriptors += map(Descriptor, found)
        if not block or len(descriptors) > 2:
            return None
        payload += block
    version, *words = bytes(payload[4:]).split(b"\0")
    # Without both descriptors: we have reached our limit of them.
    if version != VERSION or len(descriptors) != 2 or not words or not words[0].isdigit():
        return None
    count = 1 + int(words[0])
    given = [word.decode("utf-8", "surrogateescape") for word in words[1:count]]
    pairs = [word.partition(b"=") for word in words[count:]]
    environment = {name.decode(): value.decode("utf-8", "surrogateescape") for name, _, value in pairs if name in NAMES}
    return Request(given, environment, *descriptors)


async def readable(fd: int) -> None:
    """Wait until there is something to read; not for what one never has to wait for, such as /dev/null (epoll_ctl(2),
    EPERM).
    """
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    try:
        loop.add_reader(fd, lambda: None if ready.done() else ready.set_result(None))
    except PermissionError:
        return
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def gone(connection: socket.socket) -> bool:
    """Whether a client is not there any more; it says nothing behind its request."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def in_place(stdin: Descriptor) -> Source:
    """The message in a file, read where it lies; the file stays open as long as the source is used."""
    source = Source.read(stdin.number, _no_spool)
    weakref.finalize(source, stdin.stay)
    return source


def _no_spool() -> int:
    raise Deferred("a file needs no spool")


def is_file(fd: int) -> bool:
    """Whether it is a regular file, which is read without waiting."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def size_of(fd: int) -> int:
    """Bytes of a message in a file; of one in a pipe nobody knows."""
    return os.fstat(fd).st_size if is_file(fd) else 0


def directory_of(fd: int) -> str | None:
    """The absolute path of a client's working directory; None where that path is not it, seen from here."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        here, there = os.stat(path), os.fstat(fd)
    except OSError:
        return None
    return path if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else None
