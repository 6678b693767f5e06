"""One scan for many recipients: a scanner that remembers what it said of the same bytes, for a while."""

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from deliver.scan import Scanner
from deliver.values import Content, Envelope, Finding, Verdict

KEPT = 600.0
"""Seconds. Fifty recipients of one message come within minutes; signatures change every hour."""

LARGEST = 512 * 1024
"""Bytes of verdicts that each scanner keeps, about: some 400."""

AT_ONCE = 50
"""Scans under way. spamd has 5 children (spamd(1)), clamd 10 threads (clamd.conf(5)); more only queue up there, where
their time runs."""

_OVERHEAD = 1024  # bytes of a verdict without its header lines


class _Key(NamedTuple):
    """Of whom what is asked. ``user`` is "" where preferences are not per user."""

    identity: object
    digest: str
    user: str


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
        self._clock = clock
        self._kept: OrderedDict[_Key, tuple[float, Verdict]] = OrderedDict()  # the oldest first
        self._size = 0
        self._asked: dict[_Key, asyncio.Task[Verdict]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """The verdict, remembered or new. A scan that is under way is shared; a failed one is never kept."""
        key = _Key(self._identity(), content.digest(), envelope.recipient if self._per_user else "")
        self._forget(key.identity)
        if key in self._kept:
            self.hits += 1
            return self._kept[key][1]
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key, content, envelope))
            self._asked[key] = task
            task.add_done_callback(lambda _done: self._asked.pop(key))
        else:
            self.hits += 1
        # Shielded: whoever gives up waiting must not take the scan from the others.
        return await asyncio.shield(task)

    async def _ask(self, key: _Key, content: Content, envelope: Envelope) -> Verdict:
        async with self._places:
            verdict = await self._scanner.scan(content, envelope)
        if verdict.finding is not Finding.FAILED and self._identity() == key.identity:
            self._kept[key] = (self._clock(), verdict)
            self._size += _size(verdict)
        return verdict

    def _forget(self, identity: object) -> None:
        """Drop what is too old, too much, or another scanner's."""
        now = self._clock()
        while self._kept:
            key, (begun, verdict) = next(iter(self._kept.items()))
            if self._size <= LARGEST and now - begun < KEPT and key.identity == identity:
                return
            del self._kept[key]
            self._size -= _size(verdict)


def _size(verdict: Verdict) -> int:
    words = (*verdict.names, *(objection.text for objection in verdict.objections))
    return _OVERHEAD + len(verdict.headers) + sum(map(len, words))


class Version:
    """What tells one run of a scanner from the next: the version it says, and the file of its UNIX socket.

    The version is asked anew every ``interval`` seconds by ``watch``; the file is looked at each time. Learning the
    first one changes nothing; a scanner that was gone meanwhile is another one, whatever it says.
    """

    def __init__(
        self, addresses: tuple[str, ...], ask: Callable[[], Awaitable[str]] | None, interval: float = 30.0
    ) -> None:
        self._paths = [address.removeprefix("unix:") for address in addresses if address.startswith("unix:")]
        self._ask = ask
        self._interval = interval
        self._version = ""
        self._changes = 0

    def __call__(self) -> object:
        """What is known of the scanner now."""
        return (self._changes, tuple(map(_file, self._paths)))

    async def watch(self) -> None:
        """Ask for the version for ever; a scanner that does not answer has an unknown one."""
        while self._ask is not None:
            try:
                version = await self._ask()
            except Exception:  # its verdicts are failures now, and those are not kept
                version = "unknown"
            if version != self._version:
                self._changes += bool(self._version)
                self._version = version
            await asyncio.sleep(self._interval)


def _file(path: str) -> tuple[int, int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (state.st_dev, state.st_ino, state.st_ctime_ns)
