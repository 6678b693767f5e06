"""Sizes and spans of time as people write them in the configuration: "25 MiB", "5 min"."""

import re
from typing import NamedTuple

_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZES_FOLDED = {unit.lower(): factor for unit, factor in _SIZES.items()}

_SPANS = {
    1: ("s", "second", "seconds"),
    60: ("min", "minute", "minutes"),
    3600: ("h", "hour", "hours"),
    86400: ("d", "day", "days"),
    604800: ("w", "week", "weeks"),
}
_SPANS_FOLDED = {unit: factor for factor, units in _SPANS.items() for unit in units}

# [0-9], not \d: that also takes the digits of other scripts. The lengths keep int() and float() finite.
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) *([A-Za-z]*)")


class Limit(NamedTuple):
    """What a mailbox may hold: ``size`` in bytes, ``count`` in messages; 0 is no limit."""

    size: int = 0
    count: int = 0  # type: ignore[assignment]  # a tuple's count() is not missed here


def counted(number: int, one: str, many: str = "") -> str:
    """Such as "1 message" or "2 messages"; ``many`` where an s is not enough."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def parse_size(text: str) -> int:
    """The number of bytes in "25 MiB"; KB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024 (IEC 80000-13).

    The unit's case does not matter; a number alone counts bytes; "1.5 GiB" is rounded to whole bytes. ValueError says
    what was expected.
    """
    found = _QUANTITY.fullmatch(text.strip())
    unit = found[2] if found else ""
    if not found or (unit and unit.lower() not in _SIZES_FOLDED):
        raise ValueError(f'expected a size such as "25 MiB" (units {", ".join(_SIZES)}), not "{text}"')
    return _times(found[1], _SIZES_FOLDED[unit.lower() or "b"])


def parse_span(text: str) -> float:
    """The seconds in "5 min". ValueError says what was expected.

    Units: s, min, h, d, w, or second(s), minute(s), hour(s), day(s), week(s). There is none by default, and "m" alone
    is refused: it could be months.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if not found or found[2].lower() not in _SPANS_FOLDED:
        units = ", ".join(names[0] for names in _SPANS.values())
        raise ValueError(f'expected a span of time such as "5 min" (units {units}), not "{text}"')
    return float(found[1]) * _SPANS_FOLDED[found[2].lower()]


def span_words(seconds: float) -> str:
    """A span as ``parse_span`` reads it, in the largest unit up to days that it is a whole number of: "30 d"."""
    for size in (86400, 3600, 60):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f} {_SPANS[size][0]}"
    return f"{seconds:g} s"


def parse_limit(text: str) -> Limit:
    """Read the limit in "100 MB, 10000 messages" or in Maildir++ form, "100000000S,10000C"; "" and "NOQUOTA" are none.

    ValueError says what was expected.
    """
    if text.strip().upper() in ("", "NOQUOTA"):  # NOQUOTA is vpopmail's
        return Limit()
    said: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,18}) *(S|C|messages?)", part.strip())
        what = "count" if found and found[2] != "S" else "size"
        try:
            number = int(found[1]) if found else parse_size(part)
        except ValueError:
            number = -1
        if number < 0 or what in said:  # "100 MB, 10000" would be a limit of 10,000 bytes
            expected = '"100 MB, 10000 messages", "100000000S,10000C" or "NOQUOTA"'
            raise ValueError(f'expected a limit such as {expected}, not "{text}"')
        said[what] = number
    return Limit(**said)


def _times(number: str, factor: int) -> int:
    """Whole numbers stay exact: a float holds only 53 bits."""
    return round(float(number) * factor) if "." in number else int(number) * factor
