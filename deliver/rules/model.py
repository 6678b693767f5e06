"""What a rule is, and what it may look at."""

import re
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar, cast

from deliver import headers
from deliver.values import INBOX, Action, Content, Edits, Envelope

FIELD_CAP = 100 * 1024
"""Bytes of all fields of one name that conditions look at: what Postfix keeps of one field (header_size_limit)."""

LONGEST_FOLDER = 200
"""Bytes in a folder's name; with a leading dot it is a directory's, and those have 255."""

# maildir-quota-imap.md's safe set: what Dovecot and Courier store and show alike. "&" and all beyond ASCII they encode
# in different ways, "%" and "*" are wildcards of IMAP's LIST (RFC 9051 section 6.3.9), ":" begins a file's info part.
_FOLDER = re.compile(r"[A-Za-z0-9_+=@!~#$^(){}\[\] .-]*")


T = TypeVar("T")


class CannotTell(Exception):
    """Nobody knows whether a condition holds; the words say why. Its rule then does nothing, with `not` or without."""


class Signature(NamedTuple):
    """One DKIM signature as it was verified: a result of RFC 8601 section 2.7.1 and its domain, "" where it has none.

    ``detail`` says why it is not "pass".
    """

    result: str
    domain: str
    detail: str = ""


def _no_list(name: str) -> Container[str]:
    raise CannotTell(f"there is no list {name}")


class Outside(NamedTuple):
    """What conditions may ask beyond the message. Each answer costs something, and only a rule that needs it asks.

    ``addresses`` gives the entries of a list by its name in [lists]: addresses and domains, in lower case; it raises
    CannotTell where they cannot be read. ``signatures`` verifies the DKIM signatures; it raises CannotTell for a
    message that is too large. ``last_seen`` is when this mailbox got a message of that Message-ID, in seconds since
    the epoch, None for never. ``trusted`` are the authserv-ids (RFC 8601 section 2.5) whose results count, in lower
    case.
    """

    addresses: Callable[[str], Container[str]] = _no_list
    signatures: Callable[[Content], tuple[Signature, ...]] = lambda _content: ()
    last_seen: Callable[[str], float | None] = lambda _message_id: None
    trusted: frozenset[str] = frozenset()


def message_id(content: Content) -> str:
    """The message's own Message-ID, by which copies of it are known; "" where it has none."""
    fields = content.fields("message-id")
    return headers.decode(fields[0][:FIELD_CAP]) if fields else ""


class Facts(NamedTuple):
    """All that is known of a message when the rules are asked.

    ``score`` is the scanner's points, None where it gave none; ``spam`` the decision before any rule; ``viruses`` the
    names found; ``now`` in seconds since the epoch.
    """

    content: Content
    envelope: Envelope
    score: float | None
    spam: bool
    viruses: tuple[str, ...]
    now: float = 0.0
    outside: Outside = Outside()


class Text:
    """A value to match: as it stands, and without its case. ``found`` is what patterns were found in it, by whose they
    are: a text is searched once for all patterns of a file. ``parts`` are those of an address, once a rule has asked.
    """

    __slots__ = ("folded", "found", "parts", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.folded = value.casefold()
        self.found: dict[object, frozenset[int]] = {}
        self.parts: tuple[Any, ...] = ()

    @classmethod
    def of(cls, value: str) -> "Text":
        """The value of that name. An environment's undecodable bytes (PEP 383) become "?"."""
        return cls(value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8"))


class View:
    """One message as the conditions of one walk see it: every header field is decoded once, and only if asked for.

    ``spam`` and ``score`` change while rules add points or rescue.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.spam = facts.spam
        self.score = facts.score
        self._texts: dict[str, list[Text]] = {}
        self._addresses: dict[str, list[Text]] = {}
        self._once: dict[Callable[[View], Any], Any] = {}

    def once(self, reckon: Callable[["View"], T]) -> T:
        """What ``reckon`` says of this message, reckoned at the first call. A CannotTell is kept as well."""
        if reckon not in self._once:
            try:
                self._once[reckon] = reckon(self)
            except CannotTell as error:
                self._once[reckon] = error
        said = self._once[reckon]
        if isinstance(said, CannotTell):
            raise said
        return cast(T, said)

    def asked(self, reckon: Callable[["View"], T]) -> T | None:
        """What ``once`` has found; None where nobody asked, or nobody could tell."""
        said = self._once.get(reckon)
        return None if isinstance(said, CannotTell) else said

    def texts(self, field: str) -> list[Text]:
        """The decoded values of the message's own fields of that name, which is in lower case."""
        found = self._texts.get(field)
        if found is None:
            found = self._texts[field] = [Text.of(headers.decode(raw)) for raw in self.raw(field)]
        return found

    def addresses(self, field: str) -> list[Text]:
        """The addr-specs in the message's own fields of that name, which is in lower case."""
        found = self._addresses.get(field)
        if found is None:
            specs = (spec for raw in self.raw(field) for spec in headers.addresses(raw))
            found = self._addresses[field] = [Text.of(spec) for spec in specs]
        return found

    def raw(self, field: str) -> list[bytes]:
        """The values of the message's own fields of that name, which is in lower case; FIELD_CAP of them in all."""
        values = []
        left = FIELD_CAP
        for value in self.facts.content.fields(field):
            if left <= 0:
                break
            values.append(value[:left])
            left -= len(value)
        return values


class Condition(NamedTuple):
    """One compiled condition. ``words`` says what it wants: 'subject like "*invoice*"'.

    ``matches`` is None where nobody can tell: the rule is then passed over, and so it is with `not` before it. ``why``
    says, for one message, what there decided the answer that ``matches`` gave. ``for_spam`` is true of a condition that
    only mail taken for spam is likely to fulfil, ``remembers`` of one that needs to know what came before.
    """

    words: str
    matches: Callable[[View], bool | None]
    why: Callable[[View], str]
    for_spam: bool = False
    remembers: bool = False


class Responder(NamedTuple):
    """What a rule answers, with placeholders in ``subject`` and ``text``, and when.

    ``since`` and ``until`` are the first and the last day, "2026-12-24", by the clock of the host; "" is no limit. A
    sender is answered once in ``every`` seconds. ``own`` are further addresses of the mailbox.
    """

    subject: str
    text: str
    since: str = ""
    until: str = ""
    every: float = 7 * 86400.0
    own: tuple[str, ...] = ()


class Rule(NamedTuple):
    """One [[rule]]: if ``condition`` matches, all of the rest is done.

    ``source`` is the file's name and ``number`` the rule's place in it, from 1. ``placements`` end the walk; empty,
    the rule only adds. ``copies`` are further places and addresses. ``flags`` are Maildir info letters in ASCII order
    (maildir(5)), ``keywords`` IMAP's. ``headers`` are names with values to add, ``edits`` what changes in the message's
    own header. ``sees`` is "ham", "spam" or "all"; a ``never_spam`` rule sees all. ``after`` puts a site's rule behind
    the user's. ``subscribe`` says whether a folder that it makes is subscribed. Folders, values and ``log`` may hold
    placeholders (rules.placeholders).
    """

    name: str
    source: str
    number: int
    condition: Condition
    placements: tuple[Action, ...] = ()
    copies: tuple[Action, ...] = ()
    flags: str = ""
    keywords: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    edits: Edits = Edits()
    add_score: float = 0.0
    never_spam: bool = False
    reply: Responder | None = None
    log: str = ""
    sees: str = "ham"
    after: bool = False
    subscribe: bool = True

    @property
    def title(self) -> str:
        """How explanations call it: 'rule "qmail lists"', or 'rule 3 of mailfilter.toml' where it has no name."""
        return f'rule "{self.name}"' if self.name else f"rule {self.number} of {self.source}"


def folder_problem(name: str) -> str:
    """What is wrong with a folder's name, with what to write instead; "" for a good one. "INBOX" in any case is one.

    Only names that Dovecot and Courier store and show alike pass: they can name no path outside the Maildir.
    """
    wrong = _folder_fault(name)
    if not wrong:
        return ""
    instead = _plain_folder(name)
    return wrong if _folder_fault(instead) else f'{wrong}; write "{instead}"'


def is_inbox(folder: str) -> bool:
    """Whether a folder's name is the inbox's: IMAP takes it in any case (RFC 9051 section 5.1)."""
    return folder.upper() == INBOX


def _folder_fault(name: str) -> str:
    if not name:
        return "a folder needs a name"
    if not name.isascii():
        return "a folder's name has only ASCII characters, since IMAP servers store others in different ways"
    if "/" in name:
        return 'a folder is not a path, and its levels are parted by "."'
    if ".." in name:
        return 'a folder\'s name cannot have ".."'
    if name.startswith("."):
        return "a folder is named as in the mail program, without the directory's leading dot"
    if name.endswith("."):
        return "a folder's name cannot end in a dot"
    if name.upper().startswith("INBOX."):
        return 'a folder is named without the "INBOX." that some IMAP servers show before it'
    if not _FOLDER.fullmatch(name):
        bad = next(char for char in name if not _FOLDER.fullmatch(char))
        return f"a folder's name cannot have {bad!r}, which not all IMAP servers take"
    if name != name.strip():
        return "a folder's name cannot begin or end with a blank"
    if len(name) > LONGEST_FOLDER:
        return f"a folder's name has at most {LONGEST_FOLDER} characters"
    return ""


def _plain_folder(name: str) -> str:
    """What was probably meant: "Lists" of "./Maildir/.Lists", of "INBOX.Lists" and of "INBOX/Lists"."""
    levels = [level for part in name.strip().split("/") if ".." not in part for level in part.split(".") if level]
    while levels and (levels[0] == "Maildir" or (is_inbox(levels[0]) and len(levels) > 1)):
        del levels[0]
    return ".".join(levels)
