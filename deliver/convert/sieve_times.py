"""The moments that Sieve's date tests ask for (RFC 5260 section 4), as our conditions `date`, `time` and `weekday`."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from deliver.convert.formulas import FALSE, TRUE, Formula, Leaf, all_of, any_of
from deliver.convert.patterns import Untranslatable, number, one_or_all

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "="}
"""RFC 5231's comparisons in our words."""

_HALF_HOURS = {
    "+0430": "Asia/Kabul",
    "+0530": "Asia/Kolkata",
    "+0545": "Asia/Kathmandu",
    "+0630": "Asia/Yangon",
    "+0930": "Australia/Darwin",
}
"""Zones that have been there, winter and summer, since 1986 (tzdata)."""

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
    if text in _HALF_HOURS:
        return _HALF_HOURS[text]
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
    """A time of the day, compared as text: one without seconds comes before all times with them."""
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", key)
    if not found:
        raise Untranslatable(f'"{key}" is no time such as 18:00:00')
    minute = f"{found[1]}:{found[2]}"
    if found[3] is None:
        sign, seconds = {"gt": "ge", "le": "lt"}.get(sign, sign), "00"
    else:
        seconds = found[3]
    ways = {
        **dict.fromkeys([("ge", "00"), ("gt", "00")], f">= {minute}"),
        **dict.fromkeys([("lt", "00"), ("le", "00")], f"< {minute}"),
        ("gt", "59"): f"> {minute}",
        ("le", "59"): f"<= {minute}",
    }
    if (sign, seconds) not in ways:
        raise Untranslatable("times are compared by the minute")
    return _told("time", ways[sign, seconds], said)


def _iso8601(sign: str, key: str, said: dict[str, Any]) -> Formula:
    """A day, and with a "T" behind it a time: compared as text, "2026-12-24T18:00:00+01:00"."""
    found = re.fullmatch(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:(T)([0-9:]{5,8})(?:Z|[+-][0-9:]{5})?|[ ].*)?", key)
    if not found or sign == "eq":
        raise Untranslatable(f'"{key}" is no moment to come before or after')
    day, later = found[1], sign in {"ge", "gt"}
    if not found[2] or found[3].startswith("00:00"):
        return _told("date", f"{'>=' if later else '<'} {day}", said)
    same = all_of([_told("date", day, said), _time("ge" if later else "lt", found[3], said)])
    return any_of([_told("date", f"{'>' if later else '<'} {day}", said), same])


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
    "iso8601": _iso8601,
}
