"""The conditions `date`, `time` and `weekday`: when a message was written or came, by the owner's clock."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deliver.rules.matching import ANYTHING, Place, Test, closest, each, kind, number_test, quoted
from deliver.rules.model import CannotTell, Condition, View, message_id
from deliver.units import parse_span

if TYPE_CHECKING:
    from datetime import datetime, tzinfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_TIME = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])")
_COMMENT = re.compile(r"\([^()]*\)")
_LOOSE = re.compile(r"\s+(?=[:,])|(?<=:)\s+")
_RANGE = re.compile(r"\s*(\S+)\s+to\s+(\S+)\s*")
_COMPARISON = re.compile(r"\s*(>=|<=|>|<|=)?\s*(\S+)\s*")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
    ">": lambda found, wanted: found > wanted,
    "<": lambda found, wanted: found < wanted,
    "=": lambda found, wanted: found == wanted,
}
_KEYS = ("is", "of", "zone", "age")

Leaf = Callable[[str, Test, Callable[[View], Sequence["datetime"]], Callable[["datetime"], str]], Condition]


class _Scale(NamedTuple):
    """How one of the three is written: ``read`` raises ValueError, ``of`` finds it in a moment, ``show`` says it.

    ``circular`` ones have ranges such as "22:00 to 06:00"; ``open_end`` ones do not include their last.
    """

    example: str
    read: Callable[[object], int]
    of: Callable[["datetime"], int]
    show: Callable[["datetime"], str]
    circular: bool
    open_end: bool


def compile_moment(name: str, value: object, place: Place, leaf: Leaf) -> Condition:
    """The condition ``name`` ("date", "time" or "weekday"); raises ValueError."""
    scale = _SCALES[name]
    if not isinstance(value, dict):
        test = each(value, place, lambda item, _place: _test(item, scale))
        return leaf(name, test, _moments("header", ""), scale.show)
    if unknown := next((key for key in value if key not in _KEYS), None):
        raise ValueError(f'unknown key "{unknown}"{closest(unknown, _KEYS)} (there are {", ".join(_KEYS)})')
    of = value.get("of", "header")
    if of not in ("header", "arrival"):
        place.at("of").error('expected of = "header" (the Date field) or of = "arrival" (when it came here)')
    zone = place.at("zone").attempt(lambda: _zone(value.get("zone", "")), "")
    if ("is" in value) == ("age" in value):
        words = " or an age" if name == "date" else ""
        raise ValueError(f'expected {name} = {{ is = "{scale.example}", of = "arrival" }}{words}')
    if "is" in value:
        below = place.at("is")
        test = below.attempt(lambda: each(value["is"], below, lambda item, _place: _test(item, scale)), ANYTHING)
        return leaf(name, test, _moments(str(of), zone), scale.show)
    if name != "date":
        raise ValueError(f"{name} has no age; date has")
    below = place.at("age")
    age = below.attempt(lambda: number_test(value["age"], below, parse_span, "> 7 d"), ANYTHING)
    return _age(age, str(of))


def _age(test: Test, of: str) -> Condition:
    find = _moments(of, "")

    def matches(view: View) -> bool:
        return any(test.accepts(view.facts.now - moment.timestamp()) for moment in find(view))

    def why(view: View) -> str:
        found = find(view)
        if not found:
            return f"there is no date (wanted: age {test.words})"
        age = view.facts.now - found[0].timestamp()
        return f"the date is {age / 86400:.1f} days old, {'' if test.accepts(age) else 'not '}{test.words}"

    return Condition(f"date age {test.words}", matches, why)


def _test(value: object, scale: _Scale) -> Test:
    """One day, time or weekday, a comparison with one, or a range."""
    if not isinstance(value, str):
        wanted = scale.read(value)
        return Test(str(value), lambda moment: scale.of(moment) == wanted)
    if found := _RANGE.fullmatch(value):
        first, last = scale.read(found[1]), scale.read(found[2])
        if scale.open_end and first == last:
            raise ValueError(f'"{value}" ends where it begins; the whole day is "00:00 to 24:00"')
        if scale.open_end:
            last -= 1
        if first > last and not scale.circular:
            raise ValueError(f'"{value}" ends before it begins')
        around = first > last
        return Test(
            f'"{value}"',
            lambda moment: (
                (scale.of(moment) >= first or scale.of(moment) <= last) if around else first <= scale.of(moment) <= last
            ),
        )
    found = _COMPARISON.fullmatch(value)
    if not found:
        raise ValueError(f'expected {scale.example}, not "{value}"')
    compare, wanted = _COMPARE[found[1] or "="], scale.read(found[2])
    if scale.open_end and not found[1] and wanted == _time("24:00"):
        raise ValueError('no moment is at "24:00", the end of the day; midnight is "00:00"')
    if found[1] and scale.read is _weekday:
        raise ValueError('weekdays are not compared; write a range such as "mon to fri"')
    return Test(quoted(value), lambda moment: compare(scale.of(moment), wanted))


def _day(value: object) -> int:
    """Days since the year 1."""
    import datetime as dt

    try:
        if isinstance(value, dt.date):
            return value.toordinal()
        if isinstance(value, str) and (found := _DATE.fullmatch(value)):
            return dt.date(int(found[1]), int(found[2]), int(found[3])).toordinal()
    except ValueError:
        pass
    raise ValueError(f'expected a day such as "2026-12-24", not {_said(value)}')


def _time(value: object) -> int:
    """Minutes since midnight."""
    import datetime as dt

    if isinstance(value, dt.time):
        return value.hour * 60 + value.minute
    if isinstance(value, str) and (found := _TIME.fullmatch(value)):
        minutes = int(found[1]) * 60 + int(found[2])
        if minutes <= 1440:
            return minutes
    raise ValueError(f'expected a time such as "22:00", not {_said(value)}')


def _weekday(value: object) -> int:
    """0 for Monday to 6 for Sunday."""
    folded = value.lower() if isinstance(value, str) else ""
    names = [name.lower() for name in _DAY_NAMES]
    if folded in _DAYS:
        return _DAYS.index(folded)
    if folded in names:
        return names.index(folded)
    raise ValueError(f"expected a weekday ({', '.join(_DAYS)}), not {_said(value)}")


def _said(value: object) -> str:
    return quoted(value) if isinstance(value, str) else kind(value)


_SCALES = {
    "date": _Scale(
        "2026-12-24 to 2027-01-06",
        _day,
        lambda moment: moment.toordinal(),
        lambda moment: f"{moment:%Y-%m-%d}",
        circular=False,
        open_end=False,
    ),
    "time": _Scale(
        "22:00 to 06:00",
        _time,
        lambda moment: moment.hour * 60 + moment.minute,
        lambda moment: f"{moment:%H:%M}",
        circular=True,
        open_end=True,
    ),
    "weekday": _Scale(
        "mon to fri",
        _weekday,
        lambda moment: moment.weekday(),
        lambda moment: _DAY_NAMES[moment.weekday()],
        circular=True,
        open_end=False,
    ),
}


def _zone(value: object) -> str:
    """The name of a time zone that this host knows."""
    import zoneinfo

    if value == "":
        return ""
    try:
        zoneinfo.ZoneInfo(value)  # type: ignore[arg-type] # what is no string is refused below
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError(f'expected a time zone such as "Europe/Berlin", not {_said(value)}') from None
    return str(value)


def _moments(of: str, zone: str) -> Callable[[View], Sequence["datetime"]]:
    """What finds the moment in a message: none where it has no date that can be read."""

    def find(view: View) -> Sequence["datetime"]:
        import datetime as dt

        seconds = view.once(written if of == "header" else arrived)
        if seconds is None:
            return ()
        where: tzinfo | None = None
        if zone:
            import zoneinfo

            where = zoneinfo.ZoneInfo(zone)
        try:
            utc = dt.datetime.fromtimestamp(seconds, dt.UTC)
            return (utc.astimezone(where),)  # without a zone, the process's own (TZ)
        except (OverflowError, ValueError, OSError):
            return ()

    return find


def written(view: View) -> float | None:
    """When the message was written by its Date field, in seconds since the epoch; None where that does not say."""
    fields = view.texts("date")
    return seconds_of(fields[0].value) if fields else None


def arrived(view: View) -> float:
    """When the message came to this host: the top Received field's time, which our own MTA wrote, else now."""
    fields = view.texts("received")
    seconds = seconds_of(fields[0].value.rpartition(";")[2]) if fields else None
    return view.facts.now if seconds is None else seconds


def seconds_of(text: str) -> float | None:
    """A date as RFC 5322 section 3.3 writes it, or nearly; None where it is none."""
    from email.utils import mktime_tz, parsedate_tz

    # Comments and blanks may stand between all of its parts (RFC 5322 section 4.3), which parsedate_tz does not know.
    plain = _LOOSE.sub("", _COMMENT.sub(" ", text[:200]))
    try:
        parsed = parsedate_tz(plain)
        return float(mktime_tz(parsed)) if parsed else None
    except Exception:  # the email package raises what it likes on hostile dates
        return None


def seen_at(view: View) -> float | None:
    """When this mailbox got a message of the same Message-ID, in seconds since the epoch; None for never."""
    name = message_id(view.facts.content)
    if not name:
        raise CannotTell("there is no Message-ID")
    return view.facts.outside.last_seen(name)
