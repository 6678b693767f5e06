"""The moments that Sieve's date tests ask for (RFC 5260 section 4), as our conditions `date`, `time` and `weekday`."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from deliver.convert.formulas import FALSE, TRUE, Formula, Leaf, any_of
from deliver.convert.patterns import Untranslatable, number, one_or_all

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "="}
"""RFC 5231's comparisons in our words."""

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def moment(part: str, sign: str, keys: Sequence[str], said: dict[str, Any]) -> Formula:
    """That a part of a time stands in this relation to one of the keys. ``said`` is what else the condition's table
    says: `of` and `zone`. Raises Untranslatable.
    """
    if part not in _PARTS:
        raise Untranslatable(f'there is no condition for the part "{part}" of a time')
    if sign not in SIGNS:
        raise Untranslatable(f"there is no comparison {sign}")
    return any_of(_joined([_PARTS[part](sign, key, said) for key in keys], said))


def any_date(said: dict[str, Any]) -> Formula:
    """That there is a date which can be read."""
    return _told("date", ">= 0001-01-01", said)


def zone(text: str) -> str:
    """The name of the zone at "+0100"; whole hours have one, with the sign the other way round (tzdata's etcetera)."""
    found = re.fullmatch(r"([+-])(0[0-9]|1[0-4])00", text)
    if not found:
        raise Untranslatable(f'the time zone "{text}" has no name; only whole hours have')
    hours = int(found[2])
    return f"Etc/GMT{'-' if found[1] == '+' else '+'}{hours}" if hours else "Etc/UTC"


def _joined(leaves: Sequence[Formula], said: dict[str, Any]) -> Iterator[Formula]:
    """The moments as one condition, where they are of one kind."""
    moments = [leaf for leaf in leaves if isinstance(leaf, Leaf)]
    yield from (leaf for leaf in leaves if not isinstance(leaf, Leaf))
    values = [leaf.value["is"] if said else leaf.value for leaf in moments]
    if moments:
        flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
        yield _told(moments[0].key, one_or_all(flat), said)


def _told(key: str, value: Any, said: dict[str, Any]) -> Formula:
    return Leaf(key, {"is": value, **said} if said else value)


def _whole_day(sign: str, key: str, said: dict[str, Any]) -> Formula:
    return _told("date", key if sign == "eq" else f"{SIGNS[sign]} {key}", said)


def _year(sign: str, key: str, said: dict[str, Any]) -> Formula:
    year = number(key)
    ways = {
        "eq": f"{year:04}-01-01 to {year:04}-12-31",
        "ge": f">= {year:04}-01-01",
        "gt": f">= {year + 1:04}-01-01",
        "lt": f"< {year:04}-01-01",
        "le": f"< {year + 1:04}-01-01",
    }
    return _told("date", ways[sign], said)


def _hour(sign: str, key: str, said: dict[str, Any]) -> Formula:
    hour = number(key)
    if hour > 23:
        return TRUE if sign in {"lt", "le"} else FALSE
    ways = {
        "eq": f"{hour:02}:00 to {hour + 1:02}:00",
        "ge": f">= {hour:02}:00",
        "gt": f">= {hour + 1:02}:00",
        "lt": f"< {hour:02}:00",
        "le": f"< {hour + 1:02}:00",
    }
    return _told("time", ways[sign], said)


def _time(sign: str, key: str, said: dict[str, Any]) -> Formula:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])", key)
    if not found:
        raise Untranslatable(f'"{key}" is no time such as 18:00:00')
    minute = f"{found[1]}:{found[2]}"
    ways = {("ge", "00"): f">= {minute}", ("lt", "00"): f"< {minute}", ("le", "59"): f"<= {minute}"}
    if (sign, found[3]) not in ways:
        raise Untranslatable("times are compared by the minute")
    return _told("time", ways[sign, found[3]], said)


def _weekday(sign: str, key: str, said: dict[str, Any]) -> Formula:
    compare: dict[str, Callable[[int, int], bool]] = {
        "eq": lambda day, wanted: day == wanted,
        "ge": lambda day, wanted: day >= wanted,
        "gt": lambda day, wanted: day > wanted,
        "lt": lambda day, wanted: day < wanted,
        "le": lambda day, wanted: day <= wanted,
    }
    days = [name for day, name in enumerate(_WEEKDAYS) if compare[sign](day, number(key))]
    return _told("weekday", one_or_all(days), said) if days else FALSE


_PARTS: dict[str, Callable[[str, str, dict[str, Any]], Formula]] = {
    "date": _whole_day,
    "year": _year,
    "hour": _hour,
    "time": _time,
    "weekday": _weekday,
}
