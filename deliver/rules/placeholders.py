"""Placeholders in what a rule says: "Lists.{list-name}", "Auto: {subject}". What they stand for a stranger may have
written, so every value is made harmless for its place before it is put in.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping

from deliver.rules.model import View, folder_problem, is_inbox
from deliver.values import INBOX

LONGEST_VALUE = 400
"""Characters of one value: a subject that goes into another one, or into a log line."""

LONGEST_LEVEL = 60
"""Characters of one value in a folder's name: a few of them still make a name that every file system takes."""

# "{{" and "}}" are braces; any other brace that does not hold a word is one, too.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z][A-Za-z0-9-]*)\}")
_NOT_IN_A_LEVEL = re.compile(r"[^a-z0-9_+=@-]+")
_IDENTIFIER = re.compile(r"<([^<>]*)>[^<>]*\Z")


def check(text: str, known: Iterable[str] = ()) -> str:
    """The text, if all its placeholders are ``known`` (those of rules by default); ValueError says what there is."""
    there = tuple(known) or tuple(VALUES)
    for found in _PLACEHOLDER.finditer(text):
        if found[1] and found[1] not in there:
            import difflib

            near = difflib.get_close_matches(found[1].lower(), there, 1)
            hint = f"; did you mean {{{near[0]}}}?" if near else f" (there are {', '.join(there)})"
            raise ValueError(f"unknown placeholder {{{found[1]}}}{hint}; a brace itself is written {{{{")
    return text


def names(text: str) -> list[str]:
    """The placeholders in a text, in order."""
    return [found[1] for found in _PLACEHOLDER.finditer(text) if found[1]]


def sample(text: str) -> str:
    """The text with "x" for each placeholder: what can be said of a folder's name before there is a message."""
    return _PLACEHOLDER.sub(lambda found: "x" if found[1] else found[0][:1], text)


def fill(text: str, view: View) -> str:
    """The text with values in it, each on one line, without anything that a terminal obeys or a header cannot take."""
    return _fill(text, view, printable)


def folder(text: str, view: View) -> str:
    """The folder that a text names for one message. ValueError says why there is none.

    A value is one level of the name or less: small letters, digits and ``_+=@-``, so that no sender can choose the
    levels, leave the Maildir, or make two folders of one list by the case of a letter.
    """
    if not names(text):
        name = _fill(text, view, str)
    else:
        empty = [name for name in names(text) if not _level(VALUES[name](view))]
        if empty:
            raise ValueError(f"the message has no {{{empty[0]}}}")
        name = _fill(text, view, _level)
    if wrong := folder_problem(name):
        raise ValueError(wrong)
    return INBOX if is_inbox(name) else name


def printable(value: str) -> str:
    """One line of at most LONGEST_VALUE characters."""
    cut = value[: LONGEST_VALUE - 3] + "..." if len(value) > LONGEST_VALUE else value
    return "".join(char for char in cut if char.isprintable())


def _level(value: str) -> str:
    return _NOT_IN_A_LEVEL.sub("_", value.lower())[:LONGEST_LEVEL].strip("_")


def _fill(text: str, view: View, clean: Callable[[str], str]) -> str:
    return put(text, {name: clean(VALUES[name](view)) for name in names(text) if name in VALUES})


def put(text: str, values: Mapping[str, str]) -> str:
    """The text with ``values``, which are harmless there already, in place of their names."""

    def value(found: re.Match[str]) -> str:
        return values.get(found[1], found[0]) if found[1] else found[0][:1]

    return _PLACEHOLDER.sub(value, text)


# --- what they stand for -----------------------------------------------------------------------------------------


def _first(values: Iterable[str]) -> str:
    return next(iter(values), "")


def _from(view: View) -> str:
    return _first(text.value for text in view.addresses("from"))


def _user_of(address: str) -> str:
    return address.rpartition("@")[0] or address


def _domain_of(address: str) -> str:
    return address.rpartition("@")[2].lower() if "@" in address else ""


def _own_user(view: View) -> str:
    """The local part without the extension."""
    envelope = view.facts.envelope
    user = _user_of(envelope.recipient)
    bare = user[: -len(envelope.extension) - 1] if envelope.extension else ""
    return bare if bare and user.endswith((f"-{envelope.extension}", f"+{envelope.extension}")) else user


def _list_id(view: View) -> str:
    """What stands in the last <>, else the value (RFC 2919 section 3)."""
    value = _first(text.value for text in view.texts("list-id"))
    found = _IDENTIFIER.search(value)
    return (found[1] if found else value).strip().lower()


def _list_name(view: View) -> str:
    """The list's label, "announce" of "announce.qmail.example": RFC 2919 section 2 puts the host behind it."""
    return _list_id(view).partition(".")[0]


def _clock(form: str) -> Callable[[View], str]:
    return lambda view: time.strftime(form, time.localtime(view.facts.now))


VALUES: dict[str, Callable[[View], str]] = {
    "from": _from,
    "from-user": lambda view: _user_of(_from(view)),
    "from-domain": lambda view: _domain_of(_from(view)),
    "sender": lambda view: view.facts.envelope.sender,
    "sender-user": lambda view: _user_of(view.facts.envelope.sender),
    "sender-domain": lambda view: _domain_of(view.facts.envelope.sender),
    "recipient": lambda view: view.facts.envelope.recipient,
    "user": _own_user,
    "domain": lambda view: _domain_of(view.facts.envelope.recipient),
    "extension": lambda view: view.facts.envelope.extension,
    "subject": lambda view: _first(text.value for text in view.texts("subject")),
    "list-id": _list_id,
    "list-name": _list_name,
    "message-id": lambda view: _first(text.value for text in view.texts("message-id")),
    "date": _clock("%Y-%m-%d"),
    "year": _clock("%Y"),
    "month": _clock("%m"),
    "day": _clock("%d"),
    "score": lambda view: "" if view.score is None else f"{view.score:g}",
    "size": lambda view: str(view.facts.content.size),
    "virus": lambda view: ", ".join(view.facts.viruses),
}
"""Each placeholder and its value for one message, "" where the message has none."""
