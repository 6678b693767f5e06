"""What a rule is, and what it may look at."""

import re
from collections.abc import Callable
from typing import NamedTuple

from deliver import headers
from deliver.values import INBOX, Action, Content, Envelope

FIELD_CAP = 100 * 1024
"""Bytes of all fields of one name that conditions look at: what Postfix keeps of one field (header_size_limit)."""

LONGEST_FOLDER = 200
"""Bytes in a folder's name; with a leading dot it is a directory's, and those have 255."""

# maildir-quota-imap.md's safe set: what Dovecot and Courier store and show alike. "&" and all beyond ASCII they encode
# in different ways, "%" and "*" are wildcards of IMAP's LIST (RFC 9051 section 6.3.9), ":" begins a file's info part.
_FOLDER = re.compile(r"[A-Za-z0-9_+=@!~#$^(){}\[\] .-]*")


class Facts(NamedTuple):
    """All that is known of a message when the rules are asked.

    ``score`` is the scanner's points, None where it gave none; ``spam`` the decision before any rule; ``viruses`` the
    names found.
    """

    content: Content
    envelope: Envelope
    score: float | None
    spam: bool
    viruses: tuple[str, ...]


class Text(NamedTuple):
    """A value to match: as it stands, and without its case."""

    value: str
    folded: str

    @classmethod
    def of(cls, value: str) -> "Text":
        """The value of that name. An environment's undecodable bytes (PEP 383) become "?"."""
        if not value.isascii():
            value = value.encode("utf-8", "replace").decode("utf-8")
        return cls(value, value.casefold())


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

    def texts(self, field: str) -> list[Text]:
        """The decoded values of the message's own fields of that name."""
        key = field.lower()
        if key not in self._texts:
            self._texts[key] = [Text.of(headers.decode(raw)) for raw in self._raw(key)]
        return self._texts[key]

    def addresses(self, field: str) -> list[Text]:
        """The addr-specs in the message's own fields of that name."""
        key = field.lower()
        if key not in self._addresses:
            self._addresses[key] = [Text.of(spec) for raw in self._raw(key) for spec in headers.addresses(raw)]
        return self._addresses[key]

    def _raw(self, field: str) -> list[bytes]:
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

    ``why`` says, for one message, what there decided the answer that ``matches`` gave. ``for_spam`` is true of a
    condition that only mail taken for spam is likely to fulfil.
    """

    words: str
    matches: Callable[[View], bool]
    why: Callable[[View], str]
    for_spam: bool = False


class Rule(NamedTuple):
    """One [[rule]]: if ``condition`` matches, all of the rest is done.

    ``source`` is the file's name and ``number`` the rule's place in it, from 1. ``placements`` end the walk; empty,
    the rule only adds. ``copies`` are further places and addresses. ``flags`` are Maildir info letters in ASCII order
    (maildir(5)). ``headers`` are whole lines, each ended by LF. ``sees`` is "ham", "spam" or "all"; a ``never_spam``
    rule sees all. ``after`` puts a site's rule behind the user's.
    """

    name: str
    source: str
    number: int
    condition: Condition
    placements: tuple[Action, ...] = ()
    copies: tuple[Action, ...] = ()
    flags: str = ""
    headers: bytes = b""
    add_score: float = 0.0
    never_spam: bool = False
    sees: str = "ham"
    after: bool = False

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
