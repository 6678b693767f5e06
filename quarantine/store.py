"""What a quarantine keeps of a message, and what every kind of store must do."""

import math
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


def envelope(fields: object, id_: str) -> Held:
    """An envelope from what was read of it, a JSON object; ValueError where that is none.

    Whoever owns the mailbox can write there what they want, and others, root among them, look at it.
    """
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object")
    if not _ID.fullmatch(id_):
        raise ValueError("its name is none of ours")
    held: dict[str, Any] = {name: fields[name] for name in Held._fields if name in fields} | {"id": id_}
    for name, expected in _TYPES.items():
        value = held.get(name)
        if not isinstance(value, expected) or (isinstance(value, str) and not _is_text(value)):
            raise ValueError(f"its {name} is missing or wrong")
    if not (math.isfinite(held["time"]) and abs(held["time"]) < _LATEST and 0 <= held["size"] < _LARGEST):
        raise ValueError("its time or its size cannot be")
    verdicts = held.get("verdicts", [])
    if not isinstance(verdicts, list) or not all(isinstance(one, dict) for one in verdicts):
        raise ValueError("its verdicts are wrong")
    return Held(**held | {"verdicts": tuple(verdicts)})


_ID = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")
_TEXTS = ("recipient", "sender", "subject", "reason", "maildir", "folder", "top", "digest", "body")
_TYPES: dict[str, Any] = {**dict.fromkeys(_TEXTS, str), "time": (int, float), "size": int}
_LATEST = 2.0**35  # seconds: beyond it no calendar of the system's goes (year 3058)
_LARGEST = 2**63


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair (JSON's \ud800)
        return False
    return True


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

    def moved(self, id_: str, state: str) -> float:
        """When an envelope came into a state, in seconds since the epoch; KeyError where it is not in it."""

    def forget(self, id_: str, state: str) -> None:
        """Remove an envelope; KeyError where there is none."""

    def bodies(self) -> dict[str, float]:
        """The messages, by the names that envelopes have for them, and their times of change."""

    def collect(self, referenced: Callable[[], set[str]], older_than: float = 0.0, *, remove: bool = True) -> list[str]:
        """Remove (or only name) messages that no envelope names; while ``referenced`` is asked none comes or moves."""

    def sweep(self, older_than: float) -> list[str]:
        """Remove what crashed writers left."""

    def note(self, **record: object) -> None:
        """Add to the audit log."""
