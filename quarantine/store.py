"""What a quarantine keeps of a message, and what every kind of store must do."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


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
