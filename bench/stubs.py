"""Stub scanners: a clamd and a spamd that find nothing and take a set time for it.

What is measured is what delivery agents cost, so a scanner must cost as little as can be and always the same. Both
protocols as the real clients speak them: clamd(8)'s INSTREAM and FILDES, and spamd/PROTOCOL's PROCESS, HEADERS, CHECK.
"""

import asyncio
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_FOUND = b"X-Spam-Checker-Version: SpamAssassin 4.0.1 (stub)\r\nX-Spam-Level: \r\nX-Spam-Status: No, score=0.1 "
_FOUND += b"required=5.0 tests=NONE autolearn=ham\r\n\tautolearn_force=no version=4.0.1\r\n"


class Counts:
    """How many scans there were, shared between the stubs' process and the caller's."""

    _FORMAT = "4Q"

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, struct.calcsize(self._FORMAT))

    def _add(self, position: int, number: int) -> int:
        values: list[int] = list(struct.unpack_from(self._FORMAT, self._memory))
        values[position] += number
        struct.pack_into(self._FORMAT, self._memory, 0, *values)
        return values[position]

    def began(self, scanner: str) -> None:
        """A scan's request has arrived; only the stubs' process calls this."""
        self._add(0 if scanner == "clamd" else 1, 1)
        now = self._add(2, 1)
        most = struct.unpack_from(self._FORMAT, self._memory)[3]
        self._add(3, max(0, now - most))

    def ended(self) -> None:
        """It was answered."""
        self._add(2, -1)

    def read(self) -> dict[str, int]:
        """Scans by scanner, and the most that were waiting for their answer at one time."""
        clamd, spamd, _, most = struct.unpack_from(self._FORMAT, self._memory)
        return {"clamd": clamd, "spamd": spamd, "most at once": most}


class Stubs(NamedTuple):
    """Running stubs: their addresses as in the configuration, and what they counted."""

    clamd: str
    spamd: str
    counts: Counts


class _Stub(asyncio.Protocol):
    """One connection. A subclass sets ``answer`` once the request is whole."""

    name = ""

    def __init__(self, seconds: float, counts: Counts) -> None:
        self._seconds = seconds
        self._counts = counts
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def reply(self, answer: bytes) -> None:
        """Answer after the set time, and close."""
        self._counts.began(self.name)
        if self._seconds:
            asyncio.get_running_loop().call_later(self._seconds, self._reply, answer)
        else:
            self._reply(answer)

    def _reply(self, answer: bytes) -> None:
        self._counts.ended()
        self.say(answer)

    def say(self, answer: bytes) -> None:
        """Answer now, and close."""
        assert self._transport is not None
        self._transport.write(answer)
        self._transport.close()


class _Clamd(_Stub):
    name = "clamd"

    def __init__(self, seconds: float, counts: Counts) -> None:
        super().__init__(seconds, counts)
        self._held = b""
        self._streaming = False
        self._skip = 0  # bytes of the chunk that have not come yet

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._streaming:
            data = self._held + data
            # "nCOMMAND\n" or "zCOMMAND\0" (clamd(8)); the answer ends as the command does.
            end = b"\0" if data.startswith(b"z") else b"\n"
            command, found, data = data.partition(end)
            # FILDES sends its descriptor beside one more byte; it is closed for us, who do not ask for it.
            if not found or (command[1:] == b"FILDES" and not data):
                self._held = command + found
                return
            self._end = end
            match command[1:]:
                case b"INSTREAM":
                    self._streaming = True
                    self._held = b""
                case b"FILDES":
                    self.reply(b"fd[9]: OK" + end)
                    return
                case b"PING":
                    self.say(b"PONG" + end)
                    return
                case b"VERSION":
                    self.say(b"ClamAV 1.4.6/27000/Sun Nov 22 09:00:00 2026" + end)
                    return
                case _:
                    self.say(b"UNKNOWN COMMAND" + end)
                    return
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        while True:
            step = min(self._skip, len(data) - at)
            at += step
            self._skip -= step
            if self._skip or len(data) - at < 4:
                self._held = data[at:]
                return
            self._skip = int.from_bytes(data[at : at + 4])
            at += 4
            if not self._skip:
                self.reply(b"stream: OK" + self._end)
                return


class _Spamd(_Stub):
    name = "spamd"

    def __init__(self, seconds: float, counts: Counts) -> None:
        super().__init__(seconds, counts)
        self._request = bytearray()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._request += data

    def eof_received(self) -> bool:
        """The client has said everything; it waits for the answer."""
        head, _, message = bytes(self._request).partition(b"\r\n\r\n")
        method = head.split(b" ", 1)[0]
        verdict = b"Spam: False ; 0.1 / 5.0\r\n"
        if method == b"PING":
            self.say(b"SPAMD/1.5 0 PONG\r\n")
            return True
        body = b""
        if method == b"PROCESS":
            body = _FOUND.replace(b"\r\n", b"\n") + message
        elif method == b"HEADERS":
            body = _FOUND + message.partition(b"\n\n")[0] + b"\r\n\r\n"
        self.reply(b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\n%s\r\n%s" % (len(body), verdict, body))
        return True


async def _serve(directory: Path, clamd: float, spamd: float, counts: Counts, ready: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await loop.create_unix_server(lambda: _Clamd(clamd, counts), directory / "clamd", backlog=1024)
    await loop.create_unix_server(lambda: _Spamd(spamd, counts), directory / "spamd", backlog=1024)
    os.write(ready, b".")
    await stopped.wait()


@contextmanager
def stubs(directory: Path, *, clamd: float = 0.0, spamd: float = 0.0) -> Iterator[Stubs]:
    """Run both, in a process of their own; they answer after so many seconds."""
    directory.mkdir()
    counts = Counts()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(_serve(directory, clamd, spamd, counts, writing))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        if not os.read(reading, 1):
            raise RuntimeError("the stub scanners did not start")
        yield Stubs(f"unix:{directory}/clamd", f"unix:{directory}/spamd", counts)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
