"""The values that pass through a delivery: message → verdicts → plan → outcome.

Everything here is immutable and knows nothing but the standard library, so that any room of the house may use it.
"""

import enum
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

INBOX = "INBOX"


class Envelope(NamedTuple):
    """Who sent the message and for whom it is, as the MTA said it (RFC 5321 section 2.3.1), not as its header says.

    ``sender`` is "" for the null sender. ``recipient`` is ``local@domain``. ``extension`` is "" where there is none.
    ``maildir`` is an absolute path. ``return_path`` and ``delivered_to`` are whole header lines with their newline, to
    be put before the message where it has none yet; b"" for none. ``loop_addresses`` are what a Delivered-To below the
    framing must not name; empty switches the check off. ``headers`` are lines that the caller wants added.
    """

    sender: str
    recipient: str
    maildir: str
    extension: str = ""
    return_path: bytes = b""
    delivered_to: bytes = b""
    loop_addresses: tuple[str, ...] = ()
    headers: bytes = b""


class Finding(enum.Enum):
    """What one scanner can say. "Could not tell" (SKIPPED, FAILED) is never CLEAN."""

    CLEAN = "clean"
    SPAM = "spam"
    VIRUS = "virus"
    POLICY = "policy"  # nothing that it knows to be bad, but what a setting may forbid
    SKIPPED = "skipped"
    FAILED = "failed"


class Objection(NamedTuple):
    """Why a message may not be wanted as it is, whatever is in it.

    ``kind`` is "forbidden" (a file), "encrypted" (a file), "macro" (in a file), "ambiguous" (the message) or "too-big"
    (beyond the limits of unpacking). ``text`` tells more: a file's name, or words; printable and on one line.
    """

    kind: str
    text: str


class Verdict(NamedTuple):
    """One scanner's report on one message.

    ``names`` are the viruses found, or the tests that gave the score. ``score`` and ``required`` are spamd's points.
    ``reason`` says why the message was skipped or the scanner failed, in words fit for a header; ``detail`` is the same
    for the administrator. ``headers`` are the scanner's own header lines, each ended by LF. ``seconds`` is wall time.
    ``objections`` come with POLICY.
    """

    scanner: str
    finding: Finding
    names: tuple[str, ...] = ()
    score: float | None = None
    required: float | None = None
    reason: str = ""
    detail: str = ""
    headers: bytes = b""
    seconds: float = 0.0
    objections: tuple[Objection, ...] = ()


class Verb(enum.Enum):
    """What can be done with a message."""

    FILE = "file"  # into the folder `target`
    QUARANTINE = "quarantine"
    FORWARD = "forward"  # to the address `target`
    PIPE = "pipe"  # to the program that the site calls `target`
    DISCARD = "discard"
    BOUNCE = "bounce"  # `text` is what the sender reads
    DEFER = "defer"  # `text` is what the MTA logs


class Action(NamedTuple):
    """One thing to do: ``target`` is a folder, an address or a program's name, ``text`` a public sentence with its
    status code.
    """

    verb: Verb
    target: str = ""
    text: str = ""


class Edits(NamedTuple):
    """What changes in the message's own header where it is stored or sent on.

    Fields of the names ``removed`` (lower case) go, whole lines; ``tag`` is put before the subject.
    """

    removed: frozenset[bytes] = frozenset()
    tag: str = ""


class Answer(NamedTuple):
    """An automatic reply (RFC 3834) to ``address``, at most once in ``every`` seconds for the same ``key``.

    ``recipient`` is in whose name; ``subject`` and ``text`` are ready to be read.
    """

    address: str
    recipient: str
    subject: str
    text: str
    key: str
    every: float


class Plan(NamedTuple):
    """The whole decision, made before anything is touched.

    ``actions`` are done all or none. ``reason`` explains them to the mailbox's owner in one clause. ``flags`` are
    Maildir info letters in ASCII order (maildir(5)); ``headers`` are the lines that rules add. ``spam`` is the final
    decision, after the rules, and ``score`` the final score. ``edits`` change the header of what is stored or sent on.
    ``keywords`` are further info letters, folder by folder; the folders ``unsubscribed`` are not subscribed where they
    are made. ``answer`` goes out once the rest is done; ``notes`` are for the log. ``remember`` is the Message-ID by
    which a second copy will be known, to be noted once the message is where it belongs; "" for none.
    """

    actions: tuple[Action, ...]
    reason: str
    flags: str = ""
    headers: bytes = b""
    spam: bool = False
    score: float | None = None
    edits: Edits = Edits()
    keywords: tuple[tuple[str, str], ...] = ()
    unsubscribed: frozenset[str] = frozenset()
    answer: Answer | None = None
    notes: tuple[str, ...] = ()
    remember: str = ""


class Reply(NamedTuple):
    """What the MTA is told: a sysexits-like exit code (0, 75, 99, 100) and one public line, "" on success."""

    code: int
    line: str = ""


class Outcome(NamedTuple):
    """What happened: the reply for the MTA, the plan that was carried out and a private reason where it went wrong."""

    reply: Reply
    plan: Plan
    detail: str = ""


class Step(NamedTuple):
    """One sentence of the explanation of a decision; ``kind`` is scan, rule, decide, quota or perform.

    In a replay it is "owner" or "domain" as well, for a file of theirs that is not used.
    """

    kind: str
    text: str


class Problem(NamedTuple):
    """One thing wrong in a configuration. ``path`` leads to it: keys and array indices from the top; () is the whole.

    A ``warning`` says what is probably meant; it does not keep the file from being used.
    """

    path: tuple[str | int, ...]
    text: str
    warning: bool = False


class Content(Protocol):
    """A message as scanners and rules see it: the bytes that will be stored, without header lines of ours."""

    @property
    def size(self) -> int:
        """Bytes in all ``chunks``."""

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of at most 256 KiB; may be called any number of times, from any thread."""

    def digest(self) -> str:
        """SHA-256 of ``chunks``, in hexadecimal."""

    def fields(self, name: str) -> list[bytes]:
        """The raw values (behind the colon, folding and all) of the message's own header fields of that name."""


Note = Callable[[Step], object]


def unheard(_step: Step) -> None:
    """The Note of production: nobody listens."""
