"""Several daemons that do the same, asked in turn within one deadline."""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from deliver.scanners.address import Address

REST = 30.0
"""Seconds for which a member that has failed is asked last: clamd takes 15 to 30 s to load new signatures."""

_DETAIL_LIMIT = 300  # characters of one error: enough to find the cause, too few to flood the log

Answer = TypeVar("Answer")


class BadAnswer(Exception):
    """The peer answered with an error of its own, or with nothing its protocol knows.

    ``words`` follow the scanner's name in public ("answered nonsense"); the message is for the log.
    """

    def __init__(self, detail: str, words: str = "answered nonsense") -> None:
        super().__init__(detail)
        self.words = words


class NoAnswer(Exception):
    """No member of the pool answered.

    ``reason`` is public and fit for a header: "clamd did not answer". ``detail`` has every member's address and error.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason} ({detail})")
        self.reason = reason
        self.detail = detail


class Health:
    """Which members of a pool have failed lately. For one event loop; in a process for one message it stays empty."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rests: dict[Address, float] = {}  # until when

    def in_order(self, addresses: Iterable[Address]) -> list[Address]:
        """The members as they are to be asked: those at rest last, for when all others have failed, too.

        A member whose rest is over has its place again, for one caller: the others pass it over until it has answered.
        """
        now = self._clock()
        well, resting = [], []
        for address in addresses:
            until = self._rests.get(address)
            if until is not None and now < until:
                resting.append(address)
                continue
            well.append(address)
            if until is not None:
                self._rests[address] = now + REST
        return well + resting

    def failed(self, address: Address) -> None:
        """Put to rest a member that has not answered, or not sensibly."""
        self._rests[address] = self._clock() + REST

    def answered(self, address: Address) -> None:
        """Put a member that has answered back into its place."""
        self._rests.pop(address, None)


async def first_answer(
    name: str,
    addresses: Sequence[Address],
    seconds: float,
    ask: Callable[[Address, float], Awaitable[Answer]],
    health: Health | None = None,
) -> Answer:
    """Return what the first member says that answers; every kind of failure passes to the next.

    All members together have ``seconds``; each gets an even share of what is left, so that one that hangs leaves time
    for the others, and the last one gets all the rest. ``ask`` takes the address and its deadline by
    ``time.monotonic()`` (which is the event loop's clock, too). ``health`` remembers who has failed. Raises NoAnswer
    when all have failed, with the reason of the last one.
    """
    end = time.monotonic() + seconds
    health = health or Health()
    if len(addresses) > 1:
        addresses = health.in_order(addresses)
    reason = f"{name} did not answer"
    details = []
    for position, address in enumerate(addresses):
        now = time.monotonic()
        deadline = now + max(0.0, end - now) / (len(addresses) - position)
        try:
            async with asyncio.timeout_at(deadline):
                answer = await ask(address, deadline)
        except BadAnswer as error:
            reason = f"{name} {error.words}"
            details.append(f"{address}: {describe(error)}")
        except TimeoutError:
            reason = f"{name} did not answer in time"
            details.append(f"{address}: no answer within {deadline - now:.1f} s")
        except Exception as error:  # whatever went wrong here, the next member may still know
            reason = f"{name} did not answer"
            details.append(f"{address}: {describe(error)}")
        else:
            health.answered(address)
            return answer
        health.failed(address)
    raise NoAnswer(reason, "; ".join(details))


def describe(error: BaseException) -> str:
    """Name an exception in one line of ASCII for the log: its words, the system's, or else its type as well."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, BadAnswer):
        words = str(error)
    elif isinstance(error, OSError) and error.strerror:  # asyncio's own words and getaddrinfo(3)'s have other numbers
        words = os.strerror(error.errno) if error.errno and error.errno in errno.errorcode else error.strerror
    return printable(words, _DETAIL_LIMIT)


def printable(text: str, limit: int) -> str:
    """Put "?" for all but printable ASCII and cut at ``limit`` characters: a peer's words, fit for a header or log."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:limit])
