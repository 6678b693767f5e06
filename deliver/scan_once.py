"""One scan for many recipients: a scanner that remembers what it said of the same bytes, for a while."""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from deliver.scan import Scanner
from deliver.values import Content, Envelope, Finding, Verdict

KEPT = 600.0
"""Seconds. Fifty recipients of one message come within minutes; signatures change every hour."""

LARGEST = 4096
"""Verdicts kept, at most; one has a few hundred bytes, with its header lines a few thousand."""


class ScanOnce:
    """A scanner that asks the real one once for each message, and for each user where preferences are per user.

    ``identity`` tells which scanner it is: when it changes (a restart, new signatures), everything is forgotten.
    ``hits`` counts the answers that cost no scan.
    """

    def __init__(
        self,
        scanner: Scanner,
        *,
        per_user: bool,
        identity: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = scanner.name
        self.max_size = scanner.max_size
        self.hits = 0
        self._scanner = scanner
        self._per_user = per_user
        self._identity = identity
        self._seen: object = None
        self._clock = clock
        self._verdicts: OrderedDict[tuple[str, str], tuple[float, Verdict]] = OrderedDict()
        self._asked: dict[tuple[str, str], asyncio.Task[Verdict]] = {}

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """The verdict, remembered or new. A scan that is under way is shared; a failed one is never kept."""
        identity = self._identity()
        if identity != self._seen:
            self._verdicts.clear()
            self._seen = identity
        key = (content.digest(), envelope.recipient if self._per_user else "")
        kept = self._verdicts.get(key)
        if kept is not None and self._clock() - kept[0] < KEPT:
            self.hits += 1
            return kept[1]
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, content, envelope))
            self._asked[key] = task
        else:
            self.hits += 1
        # Shielded: whoever gives up waiting must not take the scan from the others.
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[str, str], content: Content, envelope: Envelope) -> Verdict:
        began = self._seen
        try:
            verdict = await self._scanner.scan(content, envelope)
        finally:
            del self._asked[key]
        if verdict.finding is not Finding.FAILED and began == self._seen:
            self._verdicts[key] = (self._clock(), verdict)
            while len(self._verdicts) > LARGEST:
                self._verdicts.popitem(last=False)
        return verdict


class Version:
    """What tells one run of a scanner from the next: the version it says, and the file of its UNIX socket.

    The version is asked anew every ``interval`` seconds by ``watch``; the file is looked at each time.
    """

    def __init__(
        self, addresses: tuple[str, ...], ask: Callable[[], Awaitable[str]] | None, interval: float = 30.0
    ) -> None:
        self._paths = [address.removeprefix("unix:") for address in addresses if address.startswith("unix:")]
        self._ask = ask
        self._interval = interval
        self._version = ""

    def __call__(self) -> object:
        """What is known of the scanner now."""
        return (self._version, tuple(map(_file, self._paths)))

    async def watch(self) -> None:
        """Ask for the version for ever; a scanner that does not answer has an unknown one."""
        while self._ask is not None:
            try:
                self._version = await self._ask()
            except Exception as error:  # its verdicts are failures now, and those are not kept
                self._version = f"unknown: {error}"
            await asyncio.sleep(self._interval)


def _file(path: str) -> tuple[int, int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (state.st_dev, state.st_ino, state.st_ctime_ns)
