"""What a quarantine keeps of a message, and what every kind of store must do."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

KINDS = ("virus", "policy", "unscanned", "spam", "rule")
"""Kinds of reasons for which mail is held, as settings name them."""


_WORDS = {
    "virus": r"\S+ found the virus ",
    "policy": r"attachments: ",
    "unscanned": r"\S+ did not scan it: ",
    "spam": r"spam(?: with |[;,]|\Z)",
}


class Held(NamedTuple):
    """The envelope of a held message, enough to release it by hand.

    ``maildir`` (absolute) and ``folder`` are where it was going. ``top`` are the header lines that belong before the
    message for this recipient. ``verdicts`` are what the scanners said, as JSON objects. ``time`` is in seconds since
    the epoch, ``size`` in bytes. ``id``, ``digest`` (SHA-256) and ``body`` (the message's file, relative to the
    quarantine) are filled in by the store.
    """

    recipient: str
    sender: str
    subject: str
    reason: str
    time: float
    maildir: str
    folder: str
    top: str
    verdicts: tuple[dict[str, Any], ...] = ()
    id: str = ""
    size: int = 0
    digest: str = ""
    body: str = ""

    @property
    def kind(self) -> str:
        """Which of KINDS the reason is."""
        return kind_of(self.reason, {str(verdict.get("finding")) for verdict in self.verdicts})


def kind_of(reason: str, findings: set[str]) -> str:
    """Which of KINDS a reason is: by its words where a delivery chose them, else by the worst that scanners found."""
    for kind, words in _WORDS.items():
        if re.match(words, reason):
            return kind
    return next((kind for kind in ("virus", "spam") if kind in findings), "rule")


class Pending(Protocol):
    """A message that is written and synced but not yet held."""

    def commit(self) -> Held:
        """Make it held, durably; raises OSError."""

    def abort(self) -> None:
        """Forget it; never raises."""


class Store(Protocol):
    """Where messages are held."""

    def prepare(self, held: Held, chunks: Iterable[bytes]) -> Pending:
        """Write the message and its envelope where a power cut finds them whole; raises OSError."""


class Archive(Store, Protocol):
    """A store as people use it. ``state`` is "held", "releasing" or "released"."""

    @property
    def path(self) -> str:
        """Where it is, for people."""

    def ids(self, state: str = "held") -> list[str]:
        """All ids in a state."""

    def read(self, id_: str, state: str = "held") -> Held:
        """One envelope; KeyError where there is none, ValueError where it is damaged."""

    def chunks(self, held: Held) -> Iterator[bytes]:
        """Its message; KeyError where that is gone."""

    def move(self, id_: str, before: str, after: str) -> None:
        """From one state to another; KeyError where somebody was quicker."""

    def forget(self, id_: str, state: str) -> None:
        """Remove an envelope."""

    def bodies(self) -> dict[str, float]:
        """The messages and their times of change."""

    def collect(self, referenced: Callable[[], set[str]], older_than: float = 0.0) -> list[str]:
        """Remove messages that no envelope names."""

    def sweep(self, older_than: float) -> list[str]:
        """Remove what crashed writers left."""

    def note(self, **record: object) -> None:
        """Add to the audit log."""
