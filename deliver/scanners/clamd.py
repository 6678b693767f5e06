"""Viruses: ask clamd (clamd(8), INSTREAM)."""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from deliver.scanners.address import Address, parse
from deliver.scanners.pool import BadAnswer, Health, NoAnswer, first_answer, printable
from deliver.values import Content, Envelope, Finding, Verdict

_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)
_SIZE_LIMIT = "INSTREAM size limit exceeded. ERROR"  # StreamMaxLength in clamd.conf(5)
_NAME_LIMIT = 200  # characters of a virus's name
_QUOTED = 120  # characters of a strange answer that the log shows
_FILE_TOO_LARGE = "a file in it is larger than clamd's own limit"

Contents = Callable[[Iterable[bytes]], Iterator[tuple[str, bytes]]]
"""The files in a message, given as its chunks: their names and their bytes."""


class Clamd:
    """One clamd, or a pool of them that are asked in turn.

    ``addresses`` are as in the configuration ("unix:/path", "tcp:host:port"; ValueError otherwise). ``max_size`` is in
    bytes, for ``scan_all``. ``timeout`` is in seconds: connect, send and answer, for all members of the pool together.
    ``contents`` gives the names and the bytes of the files that are in a message: where it is there, clamd is shown
    these as well, one by one, since its own reading of MIME misses some that a mail program would show.
    """

    name = "clamd"

    def __init__(
        self, addresses: Sequence[str], max_size: int, timeout: float, contents: Contents | None = None
    ) -> None:
        self.max_size = max_size
        self._contents = contents
        self._addresses = tuple(parse(text) for text in addresses)
        self._timeout = timeout
        self._health = Health()

    async def scan(self, content: Content, _envelope: Envelope) -> Verdict:
        """Return CLEAN, VIRUS, SKIPPED (over clamd's own size limit) or FAILED; raises nothing of the network.

        The message comes first, then what is in it, until there is a virus or a failure; where one of them was over the
        limit and no other has a virus, the message is SKIPPED.
        """
        end = time.monotonic() + self._timeout
        verdict = await self._judged(content.chunks, end)
        if self._contents is None:
            return verdict
        files = self._contents(content.chunks())
        while verdict.finding in (Finding.CLEAN, Finding.SKIPPED):
            name, data = await asyncio.to_thread(next, files, ("", None))
            if data is None:
                break
            said = await self._judged(partial(iter, (data,)), end)
            if said.finding is Finding.SKIPPED:
                verdict = said._replace(reason=_FILE_TOO_LARGE, detail=printable(name, _NAME_LIMIT))
            elif said.finding is not Finding.CLEAN:
                verdict = said._replace(detail=said.detail or printable(f"in {name}", _NAME_LIMIT))
        return verdict

    async def _judged(self, chunks: Callable[[], Iterable[bytes]], end: float) -> Verdict:
        """What clamd says of these bytes until ``end`` (``time.monotonic()``)."""

        async def ask(address: Address, deadline: float) -> Verdict:
            return read_answer(await asyncio.to_thread(_stream, address, deadline, chunks()))

        try:
            return await first_answer(self.name, self._addresses, end - time.monotonic(), ask, self._health)
        except NoAnswer as error:
            return Verdict(self.name, Finding.FAILED, reason=error.reason, detail=error.detail)

    async def version(self) -> str:
        """Return what VERSION says, "ClamAV 1.4.6/27000/Sun Nov 22 09:00:00 2026": a new one may judge anew.

        Raises NoAnswer.
        """

        async def ask(address: Address, deadline: float) -> str:
            answer = await asyncio.to_thread(_version, address, deadline)
            if not answer.startswith("ClamAV "):
                raise BadAnswer(f"unknown version: {printable(answer, _QUOTED)}")
            return printable(answer, _NAME_LIMIT)

        return await first_answer(self.name, self._addresses, self._timeout, ask, self._health)


def read_answer(line: str) -> Verdict:
    """Read clamd's answer to INSTREAM, a line without its newline; BadAnswer where it is not a verdict, to the letter.

    A name made by whoever wrote the signature goes into headers and bounces: printable ASCII, 200 characters at most.
    """
    if line == "stream: OK":
        return Verdict("clamd", Finding.CLEAN)
    if found := _FOUND.fullmatch(line):
        return Verdict("clamd", Finding.VIRUS, names=(printable(found[1], _NAME_LIMIT),))
    if line == _SIZE_LIMIT:
        return Verdict("clamd", Finding.SKIPPED, reason="larger than clamd's own limit", detail=line)
    quoted = printable(line, _QUOTED)
    raise BadAnswer(quoted, "reported an error") if line.endswith("ERROR") else BadAnswer(f'unknown answer "{quoted}"')


# Imported by the first scan, in its thread: a message over the cap, and any other command, does without.


def _stream(address: Address, deadline: float, chunks: Iterable[bytes]) -> str:
    from deliver.scanners.clamd_socket import open_socket

    return open_socket(address, deadline).instream(chunks)


def _version(address: Address, deadline: float) -> str:
    from deliver.scanners.clamd_socket import open_socket

    return str(open_socket(address, deadline).version())
