"""How much of the archives of one message is looked at. Each limit says so itself when it keeps something unread."""

import time

DEEPEST = 5
"""Archives, documents and messages in each other."""

MOST_FILES = 10_000
"""Files of all archives of one message."""

UNPACKED_CAP = 64 * 1024 * 1024
"""Bytes that are unpacked for one message, all archives together: half a second."""

RATIO = 200
"""What unpacks to more than UNPACKED_CAP and to more than so many times its size is there to fill memory."""

SECONDS = 3.0
"""Wall time for all archives of one message."""

HEAD = 1024
"""Bytes of each file in an archive that are read to know what it is; more only where something may be in it."""

_MOST_WORDS = 5


class Bounds:
    """What is left of the limits for one message.

    ``whole``: all that the files hold is wanted, not only what it takes to know what is in them.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.files = MOST_FILES
        self.bytes = UNPACKED_CAP
        self._said: list[str] = []
        self._deadline = time.monotonic() + SECONDS

    @property
    def exceeded(self) -> str:
        """Why something was not read, "" where all was."""
        return "; ".join(self._said)

    def exceed(self, words: str) -> None:
        """Something was left unread."""
        if words not in self._said and len(self._said) < _MOST_WORDS:
            self._said.append(words)

    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(self._deadline - time.monotonic(), 0.0)

    def waited(self, seconds: float) -> None:
        """So long something else was done meanwhile, which does not count."""
        self._deadline += seconds

    def late(self) -> bool:
        """Whether the deadline has passed: then what is not read yet stays so."""
        if time.monotonic() < self._deadline:
            return False
        self.exceed(f"archives take longer than {SECONDS:g} s")
        return True

    def take(self, size: int) -> None:
        """So many bytes were unpacked."""
        self.bytes -= size
        if self.bytes <= 0:
            self.exceed("archives hold too much")

    def sizes(self, unpacked: int, packed: int) -> None:
        """So large would that be which is packed into so many bytes."""
        if unpacked > UNPACKED_CAP and unpacked > RATIO * packed:
            self.exceed(f"an archive unpacks to more than {RATIO} times its size")
