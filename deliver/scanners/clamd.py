"""Viruses: ask clamd (clamd(8), INSTREAM)."""

import asyncio
import re
from collections.abc import Sequence

from deliver.scanners.address import Address, parse
from deliver.scanners.pool import BadAnswer, Health, NoAnswer, first_answer, printable
from deliver.values import Content, Envelope, Finding, Verdict

_FOUND = re.compile(r"stream: (.+) FOUND", re.DOTALL)
_SIZE_LIMIT = "INSTREAM size limit exceeded. ERROR"  # StreamMaxLength in clamd.conf(5)
_NAME_LIMIT = 200  # characters of a virus's name
_QUOTED = 120  # characters of a strange answer that the log shows


class Clamd:
    """One clamd, or a pool of them that are asked in turn.

    ``addresses`` are as in the configuration ("unix:/path", "tcp:host:port"; ValueError otherwise). ``max_size`` is in
    bytes, for ``scan_all``. ``timeout`` is in seconds: connect, send and answer, for all members of the pool together.
    """

    name = "clamd"

    def __init__(self, addresses: Sequence[str], max_size: int, timeout: float) -> None:
        self.max_size = max_size
        self._addresses = tuple(parse(text) for text in addresses)
        self._timeout = timeout
        self._health = Health()

    async def scan(self, content: Content, _envelope: Envelope) -> Verdict:
        """Return CLEAN, VIRUS, SKIPPED (over clamd's own size limit) or FAILED; raises nothing of the network."""

        async def ask(address: Address, deadline: float) -> Verdict:
            return read_answer(await asyncio.to_thread(_stream, address, deadline, content))

        try:
            return await first_answer(self.name, self._addresses, self._timeout, ask, self._health)
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


def _stream(address: Address, deadline: float, content: Content) -> str:
    from deliver.scanners.clamd_socket import open_socket

    return open_socket(address, deadline).instream(content.chunks())


def _version(address: Address, deadline: float) -> str:
    from deliver.scanners.clamd_socket import open_socket

    return str(open_socket(address, deadline).version())
