"""What is known of a variable when a filter is converted: text, and what only a message brings."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deliver.convert.formulas import FALSE, TRUE, Formula, Leaf, any_of, negated
from deliver.convert.maildrop_patterns import Capture, header
from deliver.convert.maildrop_pcre import CannotSay, is_in, text_test
from deliver.convert.patterns import glob
from deliver.convert.variables import braced


@dataclass(frozen=True)
class Home:
    """The user's home directory."""


@dataclass(frozen=True)
class Mailbox:
    """The user's Maildir, wherever it lies."""


@dataclass(frozen=True)
class Imported:
    """A variable of the mail server's, as it is for each message."""

    name: str


@dataclass(frozen=True)
class Size:
    """The message's bytes."""


@dataclass(frozen=True)
class Placeholder:
    """What our folders' names can hold: {year}."""

    name: str


@dataclass(frozen=True)
class Captured:
    """What a pattern's group matched; ``what`` is "text", or "addresses" behind getaddr()."""

    capture: Capture
    what: str = "text"
    small: bool = False


@dataclass(frozen=True)
class Status:
    """The exit code of a command: 0 where the formula holds."""

    zero: Formula


@dataclass(frozen=True)
class Mystery:
    """Nobody can tell before there is a message."""

    why: str


Symbol = Home | Mailbox | Imported | Size | Placeholder | Captured | Status | Mystery
Value = tuple[str | Symbol, ...]
"""A text in pieces."""

LONGEST_SHOWN = 72
"""Characters of a path in a report."""

EMPTY: Value = ("",)

_NAME = re.compile(r"\\\$|\$([A-Za-z_][A-Za-z0-9_]*|[0-9]+)|\$\{([^}]*)\}")


def known(value: Value) -> str | None:
    """The text, None where it depends on the message."""
    return "".join(map(str, value)) if all(isinstance(part, str) for part in value) else None


def mystery(value: Value) -> str:
    """Why a value cannot be told, "" for one that can."""
    return next((part.why for part in value if isinstance(part, Mystery)), "")


def plain(value: Value) -> Value:
    """The value with neighbouring texts as one, and EXT@HOST and $HOME/Maildir as what they are."""
    parts: list[str | Symbol] = []
    for part in value:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part != "" or not isinstance(part, str):
            parts.append(part)
    if len(parts) > 1 and parts[0] == Home():
        below = str(parts[1]) if isinstance(parts[1], str) else ""
        if below == "/" and parts[2:3] == [Mailbox()]:
            parts = parts[2:]
        elif re.match(r"/Maildir(?:/|$)", below):
            parts[:2] = [Mailbox(), *([below[8:]] if below[8:] else [])]
    names = [part.name if isinstance(part, Imported) else part for part in parts]
    if len(names) == 3 and names[0] in ("EXT", "LOCAL", "USER") and names[1:] == ["@", "HOST"]:
        return (Imported("RECIPIENT"),)
    return tuple(parts) or EMPTY


def substituted(text: str, lookup: Callable[[str], Value]) -> Value:
    """The text with its variables (maildropfilter(7), Variable substitution); one that is not there is empty."""
    parts: list[str | Symbol] = []
    at = 0
    for found in _NAME.finditer(text):
        parts.append(text[at : found.start()])
        name = found[1] or found[2]
        parts += ["$"] if name is None else lookup(name)
        at = found.end()
    return plain((*parts, text[at:]))


# --- comparisons -------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))")
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_ORDER: Mapping[str, Callable[[float], bool]] = {
    "<": lambda sign: sign < 0,
    "<=": lambda sign: sign <= 0,
    ">": lambda sign: sign > 0,
    ">=": lambda sign: sign >= 0,
    "==": lambda sign: sign == 0,
    "!=": lambda sign: sign != 0,
}
_WORDS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


def number(text: str) -> float:
    """As C's atof(3) reads it, which maildrop uses: 0 for what is none."""
    found = _NUMBER.match(text)
    return float(found[1]) if found else 0.0


def compare(operator: str, left: Value, right: Value) -> Formula:
    """The condition of a comparison. Raises CannotSay."""
    first, second = known(left), known(right)
    if first is not None and second is not None:
        return TRUE if _holds(operator, first, second) else FALSE
    if first is not None:
        left, right, second = right, left, first
        turned = _TURNED.get(_WORDS.get(operator, operator), operator)
        operator = turned if operator not in _WORDS else {"==": "eq", "!=": "ne"}.get(turned, "?")
    if second is None:
        raise CannotSay(mystery(left) or mystery(right) or "it compares two things that only a message brings")
    if operator in ("==", "eq", "!=", "ne"):
        equal = _equal(left, second)
        return equal if operator in ("==", "eq") else negated(equal)
    return _ordered(operator, left, second)


def _holds(operator: str, first: str, second: str) -> bool:
    if operator in _WORDS:
        return _ORDER[_WORDS[operator]]((first > second) - (first < second))
    one, other = number(first), number(second)
    return _ORDER[operator]((one > other) - (one < other))


def _equal(value: Value, text: str) -> Formula:
    if len(value) != 1 or mystery(value):
        raise CannotSay(mystery(value) or "it compares a text that a message has a part in")
    match value[0]:
        case Status(zero):
            # Commands that tell yes from no end with 0 or 1; what other failures would be is in no filter's mind.
            return zero if number(text) == 0 else negated(zero) if number(text) == 1 else FALSE
        case Imported(name):
            return _envelope(name, text)
        case Size():
            return Leaf("size", f"= {text}")
    raise CannotSay("it compares what a pattern has found; write a pattern that finds just this")


def _ordered(operator: str, value: Value, text: str) -> Formula:
    part = value[0] if len(value) == 1 else None
    if isinstance(part, Size):
        return Leaf("size", f"{operator} {int(number(text))}")
    if isinstance(part, Captured) and part.capture.role in ("score", "whole score"):
        limit = number(text)
        if part.capture.role == "whole score" and operator in (">", "<="):
            # Of 5.3 points this is the 5: above 5 are those from 6 on.
            limit, operator = int(limit) + 1, ">=" if operator == ">" else "<"
        score = Leaf("score", f">= {limit:g}" if operator in (">=", "<") else f"> {limit:g}")
        return score if operator in (">=", ">") else negated(score)
    raise CannotSay(mystery(value) or "it compares by size what is neither $SIZE nor spam's score")


_ENVELOPE: Mapping[str, Callable[[object], Leaf]] = {
    "SENDER": lambda test: Leaf("sender", test),
    "FROM": lambda test: Leaf("sender", test),
    "RECIPIENT": lambda test: Leaf("recipient", test),
    "LOCAL": lambda test: Leaf("recipient", f"{test}@*"),
    "HOST": lambda test: Leaf("recipient", {"domain": test}),
    "EXT": lambda test: Leaf("extension", test),
}


def _envelope(name: str, text: str) -> Formula:
    if name not in _ENVELOPE:
        raise CannotSay(f"the mail server's {name} is no condition")
    if not text and name in ("RECIPIENT", "LOCAL", "HOST"):
        return FALSE  # no message is delivered without these
    return _ENVELOPE[name](glob(text))


def truth(value: Value) -> Formula:
    """Whether a value is anything but "" and "0". Raises CannotSay."""
    text = known(value)
    if text is not None:
        return FALSE if text in ("", "0") else TRUE
    if mystery(value):
        raise CannotSay(mystery(value))
    part = value[0] if len(value) == 1 else None
    if isinstance(part, Imported):
        return negated(_envelope(part.name, ""))
    if isinstance(part, Status):
        return negated(part.zero)
    return TRUE


def matches(value: Value, pattern: str, options: str) -> Formula:
    """The condition that a pattern is in a value. Raises CannotSay."""
    text = known(value)
    if text is not None:
        return TRUE if is_in(text, pattern, options) else FALSE
    part = value[0] if len(value) == 1 else None
    if isinstance(part, Imported) and part.name in ("SENDER", "FROM", "RECIPIENT", "EXT"):
        return _ENVELOPE[part.name](_tests(pattern, options))
    if isinstance(part, Captured) and part.capture.role == "value":
        field = part.capture.field
        if part.what == "text":
            return header(field, _tests(pattern, options))
        if field in ("from", "to", "cc", "reply-to"):
            return Leaf(field, _tests(pattern, options))
    raise CannotSay(mystery(value) or "it looks into a text that only a message brings")


def _tests(pattern: str, options: str) -> object:
    found = [one for test in text_test(pattern, options) for one in (test if isinstance(test, list) else [test])]
    return found[0] if len(found) == 1 else found


def hasaddr(address: str) -> Formula:
    """The condition that To, Cc or their Resent- fields name the address."""
    plain_text = glob(address)
    resent = {"address": plain_text}
    fields = [Leaf("to", plain_text), Leaf("cc", plain_text)]
    return any_of([*fields, *(Leaf("header", {name: resent}) for name in ("Resent-To", "Resent-Cc"))])


# --- folders -----------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A folder of ours; ``elsewhere`` says where the original is, if that is not the same directory."""

    folder: str
    elsewhere: str = ""
    cased: bool = False  # a message's own letters are in the name, which ours makes small


_MAILDIRS = ("maildir", ".maildir")
_MAIL = ("mail", "mailbox", "mailboxes", "mbox", "folders")


def place(target: Value, default: Value, maildir: Value) -> Place:
    """The folder that a path of `to` or `cc` is. ``default`` and ``maildir`` are what DEFAULT and MAILDIR are there.

    Raises CannotSay where only a message tells the path, or none of our placeholders is that part of it.
    """
    cased = False
    text = ""
    for part in target:
        name, own = _named(part)
        text += name
        cased = cased or own
    path = _levels(text)
    bases = [_levels(base) for base in map(_path, (default, maildir)) if base]
    inside = _below(path, bases)
    if inside is None:
        while path and (path[0] in ("", "~", "home", "var", "usr") or path[0].lower() in _MAIL):
            path = path[2:] if path[0] == "home" else path[1:]
        name = ".".join(level.strip(".").replace(".", "_") for level in path) or "INBOX"
        return Place(name, _shown(text), cased)
    if not inside:
        return Place("INBOX")
    if all(level.startswith(".") for level in inside):
        name = ".".join(level[1:] for level in inside)
        if name.upper().startswith("INBOX."):  # a directory ".INBOX.Lists", which IMAP servers show in different ways
            return Place(name[6:], _shown(text), cased)
        return Place(name, "", cased)
    name = ".".join(level.strip(".").replace(".", "_") for level in inside)
    return Place("INBOX" if name.upper() == "INBOX" else name, _shown(text), cased)


def _named(part: str | Symbol) -> tuple[str, bool]:
    """A part of a path as our folders' names have it, and whether the original keeps a message's letters there."""
    match part:
        case str():
            return braced(part), False
        case Home():
            return "~", False
        case Mailbox():
            return "~/Maildir", False
        case Placeholder(name):
            return f"{{{name}}}", False
        case Imported("EXT"):
            return "{extension}", True
        case Imported("HOST"):
            return "{domain}", True
        case Imported("LOCAL" | "USER"):
            return "{user}", True
        case Imported("SENDER" | "FROM"):
            return "{sender}", True
        case Captured(Capture(_, "list-name" | "list-id" as role), "text", small):
            return f"{{{role}}}", not small
        case Captured(Capture(_, "detail"), "text", small):
            return "{extension}", not small
        case Mystery(why):
            raise CannotSay(why)
    raise CannotSay("the folder's name is what a pattern has found, for which there is no placeholder")


def _path(value: Value) -> str:
    try:
        return "".join(_named(part)[0] for part in value)
    except CannotSay:
        return ""


def _levels(path: str) -> list[str]:
    levels = [level for level in path.split("/") if level not in ("", ".")]
    return ["", *levels] if path.startswith("/") else levels


def _below(path: list[str], bases: list[list[str]]) -> list[str] | None:
    """The levels below the Maildir, None for a path that is not in it."""
    found = [index for index, level in enumerate(path) if level.lower() in _MAILDIRS]
    if found:
        return path[found[-1] + 1 :]
    below = [path[len(base) :] for base in bases if base and path[: len(base)] == base]
    return min(below, key=len) if below else None


def _shown(text: str) -> str:
    plain_text = text.replace("{{", "{").replace("}}", "}")
    return plain_text if len(plain_text) <= LONGEST_SHOWN else f"{plain_text[: LONGEST_SHOWN - 3]}..."
