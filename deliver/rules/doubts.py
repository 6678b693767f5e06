"""Rules that can never match, told from what stands in the file. Only `deliver check` asks.

What is said is certain: where a pattern could mean anything, nothing is said. Fields of which a message has one (From,
Subject, ...) are taken to stand there once.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from deliver.units import parse_size
from deliver.values import Problem

_SINGLE = ("from", "reply-to", "subject", "list-id", "message-id", "sender", "recipient", "extension")
"""Conditions on something that a message has once. To and Cc name many."""

_NUMBERS: dict[str, Callable[[str], float]] = {"size": parse_size, "score": float, "recipients": float}
_COUNTED = ("size", "recipients")
"""Numbers that are never below 0."""

_TRUTHS = ("spam", "virus", "is-list", "is-bounce", "encrypted", "duplicate")
_TEXTS = (*_SINGLE, "to", "cc", "body")
_COMPARISON = re.compile(r"\s*(>=|<=|>|<|=)?\s*(.*?)\s*", re.DOTALL)
_PLACING = ("file", "forward", "pipe", "discard", "bounce", "quarantine")


_INSTEAD = {"x-spam": 'write spam = true, with sees = "all" above [rule.when]', "x-viru": "write virus = true"}
"""What asks for the verdict itself, by the beginning of our header line's name."""


_ANY, _ONE = "\ue000", "\ue001"  # in a shape: any characters, and any one character


class _Alternative(NamedTuple):
    """One of the values that a condition accepts. ``literal`` is the only one, None where there are many; ``shape`` is
    all of them, in which _ANY and _ONE stand for what may be there.

    ``accepts`` says whether a value passes, or every value of a shape. None where that cannot be told here.
    """

    literal: str | None
    accepts: Callable[[str], bool] | None
    shape: str | None = None


def doubts(tables: object, removed: Callable[[str], bool] = lambda _name: False) -> list[Problem]:
    """Warnings about the raw value of a file's key `rule`. Whatever is no rule is passed over.

    ``removed`` says whether header fields of a name, in lower case, are taken out of what arrives.
    """
    rules = [(index, rule) for index, rule in enumerate(tables if isinstance(tables, list) else [])]
    rules = [(index, rule) for index, rule in rules if isinstance(rule, dict)]
    found = []
    for index, rule in rules:
        when = rule.get("when")
        if isinstance(when, dict) and (why := _impossible(when, removed)):
            found.append(Problem(("rule", index, "when"), f"no message can match: {why}", warning=True))
    return found + list(_hidden(rules)) + list(_namesakes(rules))


def _namesakes(rules: list[tuple[int, dict[str, Any]]]) -> Iterator[Problem]:
    """Rules that logs and explanations call by the name of another."""
    known: dict[object, int] = {}
    for index, rule in rules:
        name = rule.get("name")
        if isinstance(name, str) and known.setdefault(name, index) != index:
            text = f"rule {known[name] + 1} has this name, too: logs and explanations cannot tell them apart"
            yield Problem(("rule", index, "name"), text, warning=True)


class _Value:
    """A condition's value: what it accepts is found out once, with however many others it is compared."""

    def __init__(self, raw: object) -> None:
        self.raw = raw

    @functools.cached_property
    def alternatives(self) -> list[_Alternative]:
        return list(_alternatives(self.raw))

    @functools.cached_property
    def fields(self) -> dict[str, "_Value"]:
        return {key: _Value(one) for key, one in self.raw.items()} if isinstance(self.raw, dict) else {}


def _hidden(rules: list[tuple[int, dict[str, Any]]]) -> Iterator[Problem]:
    """Rules behind one that places every message which they match."""
    placing: list[tuple[int, object, _Value]] = []
    for index, rule in sorted(rules, key=lambda item: item[1].get("stage") == "after"):
        when = rule.get("when")
        if not isinstance(when, dict) or not when:
            continue
        narrow = _Value(when)
        for above, sees, wide in placing:
            if sees in ("all", _sees(rule)) and _all_cover(wide.fields, narrow.fields):
                text = f"rule {above + 1} places every message that this one could match; this one is never asked"
                yield Problem(("rule", index), text, warning=True)
                break
        if any(rule.get(key, False) is not False for key in _PLACING):
            placing.append((index, _sees(rule), narrow))


def _all_cover(wide: dict[str, _Value], narrow: dict[str, _Value], name: str = "") -> bool:
    return all(key in narrow and _covers(name or key, value, narrow[key]) for key, value in wide.items())


def _covers(name: str, wide: _Value, narrow: _Value) -> bool:
    """Whether a condition surely holds wherever the other one of its name does."""
    if wide.raw == narrow.raw:
        return True
    if name == "header" and wide.fields and narrow.fields:
        return _all_cover(wide.fields, narrow.fields, "subject")
    if name in _NUMBERS:
        spans = [_span(one, name) for one in (wide.raw if isinstance(wide.raw, list) else [wide.raw])]
        wanted = [_span(one, name) for one in (narrow.raw if isinstance(narrow.raw, list) else [narrow.raw])]
        return all(any(_both(one, other) == one for other in spans if other != _EVERYTHING) for one in wanted)
    if name not in _TEXTS:
        return False
    accepting = [one.accepts for one in wide.alternatives if one.accepts]
    shapes = [one.shape for one in narrow.alternatives]
    return bool(shapes) and all(shape is not None and any(accepts(shape) for accepts in accepting) for shape in shapes)


def _sees(rule: dict[str, Any]) -> object:
    return "all" if rule.get("never-spam") is True else rule.get("sees", "ham")


def _impossible(when: dict[str, Any], removed: Callable[[str], bool]) -> str:
    """Why all conditions of a table cannot hold together; "" where they may."""
    wanted: dict[str, list[object]] = {}
    unwanted: dict[str, list[object]] = {}
    _collect(when, wanted, unwanted)
    for name, values in wanted.items():
        field = name.removeprefix("header ")
        if field != name and removed(field):
            instead = _INSTEAD.get(field[:6], "leave it out")
            why = f"{field} is taken out of what arrives, since senders forge it; {instead}"
        elif name in _NUMBERS:
            why = _no_number(name, values)
        elif name in _TRUTHS:
            why = _no_truth(name, values, unwanted.get(name, []))
        else:
            why = _no_text(name, values, unwanted.get(name, []))
        if why:
            return why
    return ""


def _collect(when: dict[str, Any], wanted: dict[str, list[object]], unwanted: dict[str, list[object]]) -> None:
    """Every condition that must hold, and of `not` those that stand alone in their table, by what they look at."""
    for key, value in when.items():
        if key == "all" and isinstance(value, list):
            for table in value:
                if isinstance(table, dict):
                    _collect(table, wanted, unwanted)
        elif key == "not":
            for table in value if isinstance(value, list) else [value]:
                if isinstance(table, dict) and len(table) == 1:
                    _collect(table, unwanted, {})
        elif key == "header" and isinstance(value, dict):
            for field, test in value.items():
                wanted.setdefault(f"header {field.lower()}", []).append(test)
        elif key in _SINGLE or key in _NUMBERS or key in _TRUTHS:
            wanted.setdefault(key, []).append(value)


def _no_truth(name: str, wanted: list[object], unwanted: list[object]) -> str:
    """Why it cannot be both; only true and false themselves are looked at."""
    said, refused = ({one for one in values if isinstance(one, bool)} for values in (wanted, unwanted))
    if len(said) > 1:
        return f"{name} cannot be true and false"
    return f"`not` excludes the {name} that it wants" if said & refused else ""


# --- text --------------------------------------------------------------------------------------------------------


def _no_text(name: str, wanted: list[object], unwanted: list[object]) -> str:
    tests = [list(_alternatives(value)) for value in wanted]
    exact = [test for test in tests if test and all(one.literal is not None for one in test)]
    for test in exact:
        left = [one.literal for one in test if all(_may_be(one.literal or "", other) for other in tests)]
        if not left:
            values = " and ".join(sorted({f'"{one.literal}"' for other in exact for one in other}))
            more = "" if len(exact) > 1 else " and what else it must be"
            return f"{name} cannot be {values}{more} at the same time"
        refused = [other for value in unwanted for other in _alternatives(value)]
        if all(any(other.accepts and other.accepts(value or "") for other in refused) for value in left):
            return f"`not` excludes every {name} that it wants"
    return ""


def _may_be(value: str, test: list[_Alternative]) -> bool:
    return not test or any(one.accepts is None or one.accepts(value) for one in test)


def _alternatives(value: object) -> Iterator[_Alternative]:
    if isinstance(value, list):
        for one in value:
            yield from _alternatives(one)
    elif isinstance(value, str):
        yield _glob(value)
    elif isinstance(value, dict) and len(value) == 1:
        ((way, wanted),) = value.items()
        for text in wanted if isinstance(wanted, list) else [wanted]:
            if way == "is" and isinstance(text, str):
                yield _literal(text)
            elif way == "matches" and isinstance(text, str):
                yield _glob(text)
            elif way == "contains" and isinstance(text, str):
                yield _containing(text.casefold())
            else:
                yield _Alternative(None, None)
    else:
        yield _Alternative(None, None)


def _containing(part: str) -> _Alternative:
    return _Alternative(None, lambda found: part in found.casefold(), f"{_ANY}{part}{_ANY}")


def _literal(text: str) -> _Alternative:
    folded = text.casefold()
    return _Alternative(text, lambda found: found.casefold() == folded, text)


def _glob(glob: str) -> _Alternative:
    r"""As conditions have it: only ``*`` and ``?`` are special, ``\`` escapes."""
    parts = re.findall(r"\\.|[*?]|[^\\*?]+", glob, re.DOTALL)
    if not any(part in ("*", "?") for part in parts):
        return _literal("".join(part.removeprefix("\\") for part in parts))
    wild = {"*": ".*", "?": f"[^{_ANY}]"}
    pattern = "".join(wild.get(part, re.escape(part.removeprefix("\\"))) for part in parts)
    shape = "".join({"*": _ANY, "?": _ONE}.get(part, part.removeprefix("\\")) for part in parts)
    # Only ever asked about a text of the same file; `check` may take its time.
    return _Alternative(None, lambda found: _compiled(pattern).fullmatch(found) is not None, shape)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Kept for a thousand rules: re itself keeps 512."""
    return re.compile(pattern, re.DOTALL | re.IGNORECASE)


# --- numbers -----------------------------------------------------------------------------------------------------

_Span = tuple[float, bool, float, bool]
"""From, whether itself, to, whether itself."""

_EVERYTHING: _Span = (-math.inf, True, math.inf, True)


def _no_number(name: str, values: list[object]) -> str:
    left = [(0.0, True, math.inf, True) if name in _COUNTED else _EVERYTHING]
    for value in values:
        spans = [_span(one, name) for one in (value if isinstance(value, list) else [value])]
        left = [both for one in left for other in spans if (both := _both(one, other))]
        if not left:
            alternatives = (value if isinstance(value, list) else [value] for value in values)
            words = " and ".join(
                " or ".join(f'"{one}"' if isinstance(one, str) else str(one) for one in some) for some in alternatives
            )
            return f"no {name} is {words}"
    return ""


def _span(value: object, name: str) -> _Span:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (float(value), True, float(value), True)
    if not isinstance(value, str):
        return _EVERYTHING
    found = _COMPARISON.fullmatch(value)
    try:
        number = float(_NUMBERS[name](found[2] if found else ""))
    except ValueError:
        return _EVERYTHING
    return {
        ">": (number, False, math.inf, True),
        ">=": (number, True, math.inf, True),
        "<": (-math.inf, True, number, False),
        "<=": (-math.inf, True, number, True),
    }.get(found[1] if found and found[1] else "=", (number, True, number, True))


def _both(one: _Span, other: _Span) -> _Span | None:
    """What lies in both; None for nothing. (lower bound: the greater, at the same place the one without it)"""
    low, with_low = max((one[0], not one[1]), (other[0], not other[1]))
    high, with_high = min((one[2], one[3]), (other[2], other[3]))
    if low > high or (low == high and (with_low or not with_high)):
        return None
    return (low, not with_low, high, with_high)
