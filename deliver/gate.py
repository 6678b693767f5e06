"""How much may be in work at the same time, and who is next."""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

from deliver.errors import Deferred
from deliver.metrics import Metrics

BUSY = "4.3.2 Mail filter is busy"
"""The public sentence for those who have waited in vain."""


class Place:
    """Among the messages in work, or waiting to be. ``turn`` is done when its time has come."""

    def __init__(self, gate: "Gate", size: int) -> None:
        self.size = size
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gate = gate

    def grow(self, size: int) -> None:
        """The message has turned out to have ``size`` bytes."""
        self._gate.size += size - self.size
        self.size = size


class Gate:
    """Lets so many messages, with so many bytes together, be in work; others wait for PATIENCE, first come first.

    One message alone may be larger than the limit.
    """

    PATIENCE = 30.0
    """Seconds that a request waits for its turn, then it is told to come again."""

    def __init__(self, messages: int, size: int, metrics: Metrics) -> None:
        self._messages = messages
        self._size = size
        self._metrics = metrics
        self._queue: deque[Place] = deque()
        self.messages = 0
        self.size = 0

    @contextlib.asynccontextmanager
    async def work(self, size: int) -> Any:
        """Be in work with a message of ``size`` bytes, as far as is known; yields a Place. Raises Deferred."""
        begun = time.monotonic()
        place = Place(self, size)
        self._queue.append(place)
        self._admit()
        try:
            if not place.turn.done():
                await asyncio.wait((place.turn,), timeout=self.PATIENCE)
            if not place.turn.done():
                raise Deferred("over the limit of messages or bytes in work", BUSY)
            self._metrics.waited(time.monotonic() - begun)
            yield place
        finally:
            if place.turn.done():
                self.messages -= 1
                self.size -= place.size
            else:
                self._queue.remove(place)
            self._admit()

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].size):
            place = self._queue.popleft()
            self.messages += 1
            self.size += place.size
            place.turn.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.messages < self._messages and (not self.messages or self.size + size <= self._size)
