"""[[rule]] tables as TOML gives them, turned into Rules, with every error and every probable slip at once."""

import binascii
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from deliver.rules.conditions import (
    EVERY_MESSAGE,
    FIELD_NAME,
    NAMES,
    Budget,
    Place,
    closest,
    compile_when,
    is_finite,
    kind,
)
from deliver.rules.model import Rule, folder_problem, is_inbox
from deliver.values import INBOX, Action, Problem, Verb

T = TypeVar("T")

LONGEST_LINE = 400
"""Characters of a name or a public sentence; an SMTP reply line has at most 512 (RFC 5321 section 4.5.3.1.5)."""

LONGEST_HEADER = 900
"""Characters of an ASCII header value: a line has at most 998 (RFC 5322 section 2.1.1)."""

_FLAGS = {"seen": "S", "flagged": "F", "answered": "R", "replied": "R", "draft": "D"}
_SEES = ("ham", "spam", "all")

# Lines of ours: a rule that writes them would say in our name what we did not find.
_OURS = frozenset({"authentication-results", "delivered-to", "return-path", "x-filter-error", "x-virus-status"})
_OUR_PREFIX = "x-spam-"

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# A dash in front would be an option to the program that sends it on.
_ADDRESS = re.compile(rf"(?!-){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_LONGEST_ADDRESS = 254  # a path with its <> has at most 256 (RFC 5321 section 4.5.3.1.3)

_STATUS = re.compile(r"([0-9])\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def load(tables: object, source: str, *, user: bool) -> tuple[tuple[Rule, ...], list[Problem]]:
    """The rules in ``tables``, the raw value of a file's top-level key `rule`, and all that is wrong with them.

    ``source`` is the file's name, as explanations call it. ``user`` refuses what only a site's file may say. A
    Problem's path begins with ("rule", index). Rules with an error are left out; the order is the file's. Never raises.
    """
    problems: list[Problem] = []
    top = Place(("rule",), problems, Budget())
    if tables is None:
        return (), problems
    if not isinstance(tables, list):
        top.error(f"expected [[rule]], with two brackets, for each rule, not {kind(tables)}")
        return (), problems
    rules = []
    for index, table in enumerate(tables):
        before = len(problems)
        rule = _rule(table, source, index + 1, top.at(index), user=user)
        if all(problem.warning for problem in problems[before:]):
            rules.append(rule)
    _warn_of_hidden(rules, top)
    return tuple(rules), problems


def _rule(table: object, source: str, number: int, place: Place, *, user: bool) -> Rule:
    rule = Rule("", source, number, EVERY_MESSAGE)
    if not isinstance(table, dict):
        place.error(f"expected a table, not {kind(table)}")
        return rule
    for key, value in table.items():
        try:
            rule = _with_key(rule, key, value, place.at(key), user=user)
        except ValueError as error:
            place.at(key).error(str(error))
    _look_over(rule, table, place)
    return rule


def _with_key(rule: Rule, key: str, value: object, place: Place, *, user: bool) -> Rule:
    if key == "stage" and user:
        raise ValueError("only a site's rules have a stage")
    if key in _KEYS:
        return _KEYS[key](rule, value, place)
    if key in NAMES:
        raise ValueError(f'"{key}" is a condition and belongs below [rule.when]')
    if key in _COMING:
        raise ValueError(f'action "{key}" is not there yet')
    raise ValueError(f'unknown key "{key}"{closest(key, {*_KEYS, *_COMING, *NAMES})}')


def _look_over(rule: Rule, table: dict[str, object], place: Place) -> None:
    """What no key shows alone."""
    placing = [key for key in _PLACEMENTS if table.get(key, False) is not False]
    if len(placing) > 1 and placing != ["file", "forward"]:
        names = " and ".join(f'"{key}"' for key in placing)
        place.error(f"{names} contradict each other; only file and forward go together")
    if not _ACTIONS.intersection(table):
        place.error("the rule does nothing; give it an action, such as file")
    if rule.never_spam and table.get("sees", "all") != "all":
        place.at("sees").warn("a rule with never-spam sees all mail; leave this out")
    if rule.condition.for_spam and _seen(rule) == "ham":
        place.at("when").warn(
            'the rule sees only mail that is not spam; write sees = "spam" or sees = "all" above [rule.when]'
        )


def _seen(rule: Rule) -> str:
    return "all" if rule.never_spam else rule.sees


def _warn_of_hidden(rules: list[Rule], place: Place) -> None:
    """Say which rules a placing rule without conditions keeps from ever being asked."""
    order = sorted(rules, key=lambda rule: rule.after)
    for index, rule in enumerate(order):
        if not rule.placements or rule.condition is not EVERY_MESSAGE:
            continue
        hidden = [below.number for below in order[index + 1 :] if _seen(rule) in {"all", _seen(below)}]
        if hidden:
            numbers = ", ".join(map(str, hidden[:5])) + (", ..." if hidden[5:] else "")
            below = f"rules {numbers} are" if hidden[1:] else f"rule {numbers} is"
            place.at(rule.number - 1).warn(f"without [rule.when] it places every message, and {below} never asked")


# --- the keys of a rule: each takes the rule so far and returns it with more ---------------------------------------


def _name(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(name=_line(value))


def _when(rule: Rule, value: object, place: Place) -> Rule:
    return rule._replace(condition=compile_when(value, place, _KEYS))


def _stage(rule: Rule, value: object, _place: Place) -> Rule:
    if value != "after":
        raise ValueError('expected stage = "after": behind the user\'s rules; without it the rule stands before them')
    return rule._replace(after=True)


def _sees(rule: Rule, value: object, _place: Place) -> Rule:
    if not isinstance(value, str) or value not in _SEES:
        raise ValueError('expected sees = "ham", "spam" or "all"')
    return rule._replace(sees=value)


def _file(rule: Rule, value: object, _place: Place) -> Rule:
    return _placed(rule, _into_folder(_string(value, "a folder")))


def _forward(rule: Rule, value: object, place: Place) -> Rule:
    return _placed(rule, *_each(value, place, "an address", _to_address))


def _discard(rule: Rule, value: object, _place: Place) -> Rule:
    return _placed(rule, Action(Verb.DISCARD)) if _switch("discard", value) else rule


def _bounce(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, str):
        return _placed(rule, Action(Verb.BOUNCE, text=_sentence(value)))
    return _placed(rule, Action(Verb.BOUNCE, text="5.7.1 Message refused")) if _switch("bounce", value) else rule


def _quarantine(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, str):
        return _placed(rule, Action(Verb.QUARANTINE, text=_line(value)))
    return _placed(rule, Action(Verb.QUARANTINE)) if _switch("quarantine", value) else rule


def _copy(rule: Rule, value: object, place: Place) -> Rule:
    def one(text: str) -> Action:
        return _to_address(text) if "@" in text else _into_folder(text)

    return rule._replace(copies=tuple(_each(value, place, "a folder or an address", one)))


def _flag(rule: Rule, value: object, place: Place) -> Rule:
    return rule._replace(flags="".join(sorted(set(_each(value, place, "a flag", _letter)))))


def _add_header(rule: Rule, value: object, place: Place) -> Rule:
    if not isinstance(value, dict) or not value:
        raise ValueError('expected add-header = { "X-Name" = "value" }')
    lines = []
    for name, text in value.items():
        try:
            lines.append(_header_line(name, text))
        except ValueError as error:
            place.at(name).error(str(error))
    return rule._replace(headers=b"".join(lines))


def _add_score(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number of points, not {kind(value)}")
    if not is_finite(value):
        raise ValueError("expected a finite number of points")
    return rule._replace(add_score=float(value))


def _never_spam(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(never_spam=_switch("never-spam", value))


_KEYS: dict[str, Callable[[Rule, object, Place], Rule]] = {
    "name": _name,
    "when": _when,
    "stage": _stage,
    "sees": _sees,
    "file": _file,
    "copy": _copy,
    "forward": _forward,
    "discard": _discard,
    "bounce": _bounce,
    "quarantine": _quarantine,
    "flag": _flag,
    "add-header": _add_header,
    "add-score": _add_score,
    "never-spam": _never_spam,
}

_PLACEMENTS = ("file", "forward", "discard", "bounce", "quarantine")
_ACTIONS = frozenset(_KEYS) - {"name", "when", "stage", "sees"}

_COMING = ("reply",)
"""Actions of the language that nothing performs yet."""


# --- values ------------------------------------------------------------------------------------------------------


def _placed(rule: Rule, *actions: Action) -> Rule:
    return rule._replace(placements=(*rule.placements, *actions))


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected {key} = true, not {kind(value)}")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected {what} in quotes, not {kind(value)}")
    return value


def _each(value: object, place: Place, what: str, one: Callable[[str], T]) -> list[T]:
    """What ``one`` makes of a string, or of each in an array."""
    if not isinstance(value, list):
        return [one(_string(value, what))]
    if not value:
        raise ValueError("the array is empty")
    made = []
    for index, item in enumerate(value):
        try:
            made.append(one(_string(item, what)))
        except ValueError as error:
            place.at(index).error(str(error))
    return made


def _line(value: object) -> str:
    """Words that logs and lists show."""
    text = _string(value, "words").strip()
    if not text or not text.isprintable() or len(text) > LONGEST_LINE:
        raise ValueError(f"expected one line of at most {LONGEST_LINE} characters, without control characters")
    return text


def _sentence(value: str) -> str:
    """What the sender of a bounced message reads, behind a status code (RFC 3463)."""
    text = _line(value)
    if not text.isascii():
        raise ValueError("a bounce's text has only ASCII characters, as SMTP replies do (RFC 5321 section 4.2)")
    status = _STATUS.match(text)
    if status and status[1] != "5":
        raise ValueError(f'a bounce is final: its status code begins with 5, not {status[1]} (such as "5.7.1 Refused")')
    return text if status else f"5.7.1 {text}"


def _into_folder(name: str) -> Action:
    if wrong := folder_problem(name):
        raise ValueError(wrong)
    return Action(Verb.FILE, INBOX if is_inbox(name) else name)


def _to_address(text: str) -> Action:
    if not _ADDRESS.fullmatch(text) or len(text) > _LONGEST_ADDRESS:
        raise ValueError(f'"{text}" is no mail address such as "user@example.org"')
    return Action(Verb.FORWARD, text)


def _letter(flag: str) -> str:
    if flag.lower() not in _FLAGS:
        raise ValueError(f'unknown flag "{flag}"{closest(flag, _FLAGS)} (there are {", ".join(_FLAGS)})')
    return _FLAGS[flag.lower()]


def _header_line(name: str, value: object) -> bytes:
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{name}" is no header field\'s name: those are ASCII, without blanks and colons')
    if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIX):
        raise ValueError(f'"{name}" is one of the lines that only the filter itself writes')
    text = _string(value, "a value").strip(" ")
    if not text or _CONTROL.search(text):
        raise ValueError("a header field's value is one line, not empty, without control characters")
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"a header field's value has at most {LONGEST_HEADER} characters")
    if text.isascii():
        return f"{name}: {text}\n".encode("ascii")
    first, *others = _encoded_words(text)
    start = f"{name}: {first}"
    if len(start) > _LONGEST_ENCODED_LINE:
        start = f"{name}:\n {first}"
    return "\n ".join([start, *others, ""]).rstrip(" ").encode("ascii")


_LONGEST_ENCODED_LINE = 76  # RFC 2047 section 2
_ENCODED_BYTES = 45  # with base64's third more and the frame below 75, a word's length in RFC 2047 section 2


def _encoded_words(text: str) -> Iterator[str]:
    """RFC 2047 words of whole characters (section 5)."""
    chunk = b""
    for char in text:
        encoded = char.encode("utf-8")
        if len(chunk) + len(encoded) > _ENCODED_BYTES:
            yield _encoded_word(chunk)
            chunk = b""
        chunk += encoded
    yield _encoded_word(chunk)


def _encoded_word(chunk: bytes) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(chunk, newline=False).decode('ascii')}?="
