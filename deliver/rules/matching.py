"""What a rule's condition is made of: where it stands in a file, and the tests of text and numbers.

A test is made once, when the file is read; a slip raises ValueError with a sentence that says what was expected.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from deliver.rules.model import Text
from deliver.values import Problem

T = TypeVar("T")

LARGEST_REGEX = 10_000
"""Steps of a compiled pattern, as RE2 counts them (a \\pL has 1200); this takes some 0.1 s for FIELD_CAP."""

STEPS_PER_FILE = 500_000
"""Steps of all patterns in one file: a thousand rules of words have 100,000, compiled in under a second."""

LARGEST_BODY_REGEX = 2_000
"""Steps of a pattern that is searched for in whole bodies, which are ten times as long as header fields."""

STEPS_TOGETHER = 20_000
"""Steps of patterns that are searched for at once: RE2 compiles no more than some 60,000 in its 8 MiB."""

REFUSED_STEPS = 25_000
"""What a pattern counts for that RE2 gives up as too large, which takes it 0.1 s."""

LONGEST_SHOWN = 72
"""Characters of a value or pattern that an explanation quotes."""


class Budget:
    """What compiling one file's patterns may still cost, in RE2's steps: a user's file must not hold up others."""

    def __init__(self) -> None:
        self.left = STEPS_PER_FILE
        self._together: dict[str, Together] = {}

    def together(self, name: str) -> "Together":
        """The patterns that this file's rules search for in the values of one name, such as "subject"."""
        return self._together.setdefault(name, Together())


class _Pattern(NamedTuple):
    text: str
    search: Callable[[str], object]
    steps: int


class Together:
    """Patterns that are searched for in the same texts: RE2 reads a text once for all of them.

    Measured for 1000 patterns of words: on 1 MB 2.8 s one by one, 8 ms together; on a subject 4 ms and 0.1 ms.
    """

    def __init__(self) -> None:
        self._patterns: list[_Pattern] = []
        self._searches: list[Callable[[str], list[int]]] | None = None

    def add(self, pattern: _Pattern) -> int:
        """Take one more; returns its number in ``found``."""
        self._patterns.append(pattern)
        return len(self._patterns) - 1

    def found(self, text: Text) -> frozenset[int]:
        """Which of the patterns the text has; reckoned once for each text."""
        found = text.found.get(self)
        if found is None:
            if self._searches is None:
                self._searches = list(self._compiled())
            found = text.found[self] = frozenset(hit for search in self._searches for hit in search(text.value))
        return found

    def _compiled(self) -> Iterator[Callable[[str], list[int]]]:
        group: dict[int, _Pattern] = {}
        for number, pattern in enumerate(self._patterns):
            if group and sum(one.steps for one in group.values()) + pattern.steps > STEPS_TOGETHER:
                yield _search_of(group)
                group = {}
            group[number] = pattern
        yield _search_of(group)


def _search_of(group: dict[int, _Pattern]) -> Callable[[str], list[int]]:
    """What searches a text for a few patterns at once and returns the numbers of those that it has."""
    import re2

    numbers = list(group)
    joined = re2.Set.SearchSet(_options())

    def one_by_one(value: str) -> list[int]:
        return [number for number, pattern in group.items() if pattern.search(value) is not None]

    def together(value: str) -> list[int]:
        hits = joined.Match(value)
        # The first pattern is in every text. Where even that is not found, RE2 ran out of memory, which
        # RE2::Set::Match tells C++ but not Python.
        return [numbers[hit - 1] for hit in hits if hit] if hits else one_by_one(value)

    try:
        for pattern in ("", *(one.text for one in group.values())):
            joined.Add(pattern)
        joined.Compile()
    except re2.error:  # larger together than RE2's memory allows
        return one_by_one
    return together


class Place(NamedTuple):
    """Where in a file something stands, and where to say what is wrong with it.

    ``lists`` are the names in [lists]. ``together`` gathers the patterns for values that a View keeps: for others it is
    None, since what was found is kept with the text. A pattern has at most ``largest`` steps.
    """

    path: tuple[str | int, ...]
    problems: list[Problem]
    budget: Budget
    lists: frozenset[str] = frozenset()
    together: Together | None = None
    largest: int = LARGEST_REGEX

    def at(self, *keys: str | int) -> "Place":
        """A place below this one."""
        return self._replace(path=(*self.path, *keys))

    def error(self, text: str) -> None:
        """Say what is wrong; the file cannot be used."""
        self.problems.append(Problem(self.path, text))

    def warn(self, text: str) -> None:
        """Say what is probably meant."""
        self.problems.append(Problem(self.path, text, warning=True))

    def attempt(self, compiling: Callable[[], T], stand_in: T) -> T:
        """What ``compiling`` returns; where it raises ValueError, that is an error here; the stand-in comes back."""
        try:
            return compiling()
        except ValueError as error:
            self.error(str(error))
            return stand_in


def kind(value: object) -> str:
    """What a TOML value is, in words."""
    if isinstance(value, bool):
        return "true" if value else "false"
    for types, words in (
        ((str,), "a string"),
        ((int, float), "a number"),
        ((list,), "an array"),
        ((dict,), "a table"),
    ):
        if isinstance(value, types):
            return words
    return "a date or time"


def quoted(value: str) -> str:
    """A value for an explanation: cut, and without what a terminal would obey."""
    shown = value if len(value) <= LONGEST_SHOWN else f"{value[: LONGEST_SHOWN - 3]}..."
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else "\ufffd" for char in shown)
    return f'"{shown}"'


def closest(word: str, among: Iterable[str]) -> str:
    """'; did you mean "subject"?' for "sbject", "" where nothing is near."""
    import difflib

    near = difflib.get_close_matches(word.lower(), list(among), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


# --- what one value must be --------------------------------------------------------------------------------------


class Test(NamedTuple):
    """What one value must be. ``words`` goes before or behind the value: 'like "*.pdf"'."""

    words: str
    accepts: Callable[[Any], bool]


ANYTHING = Test("anything", lambda _value: True)
"""The stand-in for a test that cannot be made."""


def each(value: object, place: Place, one: Callable[[object, Place], Test]) -> Test:
    """A test for a value or for an array of them: any."""
    if not isinstance(value, list):
        return one(value, place)
    if not value:
        raise ValueError("the array is empty: nothing would match")

    def compiled(index: int) -> Test:
        below = place.at(index)
        return below.attempt(lambda: one(value[index], below), ANYTHING)

    return any_of([compiled(index) for index in range(len(value))])


def any_of(tests: Sequence[Test]) -> Test:
    """A test that passes where one of these does."""
    if len(tests) == 1:
        return tests[0]
    return Test(" or ".join(test.words for test in tests), lambda found: any(test.accepts(found) for test in tests))


# --- text --------------------------------------------------------------------------------------------------------


def text_test(value: object, place: Place) -> Test:
    """A string is a glob; a table chooses; an array means any."""
    return each(value, place, one_text_test)


def one_text_test(value: object, place: Place, others: Iterable[str] = ()) -> Test:
    """As ``text_test``, without arrays. ``others`` are further keys that could be meant by one that does not exist."""
    if isinstance(value, str):
        return _glob(value, place)
    if not isinstance(value, dict):
        raise ValueError(
            f'expected a string such as "*word*" or a table such as {{ contains = "word" }}, not {kind(value)}'
        )
    if len(value) != 1:
        raise ValueError(f"expected a table with exactly one of {', '.join(MATCHES)}")
    (key, wanted), *_ = value.items()
    if key not in MATCHES:
        known = (*MATCHES, *others)
        raise ValueError(f'unknown kind of match "{key}"{closest(key, known)} (there are {", ".join(known)})')
    below = place.at(key)
    return below.attempt(lambda: each(wanted, below, lambda item, where: _pattern(key, item, where)), ANYTHING)


def _pattern(key: str, value: object, place: Place) -> Test:
    if not isinstance(value, str):
        raise ValueError(f"expected a string or an array of strings, not {kind(value)}")
    if not value and key in {"contains", "regex"}:
        raise ValueError("the string is empty: everything would match")
    return MATCHES[key](value, place)


def _is(wanted: str, _place: Place) -> Test:
    folded = wanted.casefold()
    return Test(quoted(wanted), lambda text: bool(text.folded == folded))


def _contains(wanted: str, _place: Place) -> Test:
    folded = wanted.casefold()
    return Test(f"containing {quoted(wanted)}", lambda text: folded in text.folded)


def _glob(glob: str, place: Place) -> Test:
    """Linear in the text whatever the glob: the runs between stars are searched for one after the other."""
    runs = [""]
    wild = ""
    escaped = False
    for char in glob:
        if escaped or char not in "*?\\":
            runs[-1] += char
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            wild += char
            runs.append("")
    if escaped:
        raise ValueError('the string ends in a single "\\", which escapes nothing; a backslash itself is "\\\\"')
    if not wild:
        return _is(runs[0], place)
    words = f"like {quoted(glob)}"
    if "?" in wild:
        # RE2, since searching a run that may begin anywhere would not be linear by hand. It takes the value with its
        # case: without it a letter may be two ("ß", "ss").
        any_of = [{"*": ".*", "?": "."}[char] for char in wild] + [""]
        pattern = "".join(_escape(run) + gap for run, gap in zip(runs, any_of, strict=True))
        return Test(words, _found(f"^(?s:{pattern})$", place))
    first, *middle, last = [run.casefold() for run in runs]
    return Test(words, lambda text: _in_order(text.folded, first, middle, last))


def _in_order(text: str, first: str, middle: Sequence[str], last: str) -> bool:
    at = len(first)
    end = len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for run in middle:
        at = text.find(run, at, end)
        if at < 0:
            return False
        at += len(run)
    return True


def _regex(pattern: str, place: Place) -> Test:
    return Test(f"matching {quoted(pattern)}", _found(pattern, place))


def _found(pattern: str, place: Place) -> Callable[[Any], bool]:
    """Whether a text has the pattern somewhere."""
    compiled = _re2(pattern, place.budget, place.largest)
    search, together = compiled.search, place.together
    if together is None:
        return lambda text: search(text.value) is not None
    number = together.add(compiled)
    return lambda text: number in together.found(text)


def _options() -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False  # it logs to standard error, which must stay empty
    options.case_sensitive = False
    return options


def _re2(pattern: str, budget: Budget, largest: int) -> _Pattern:
    """A compiled pattern; ValueError says why RE2 refuses it."""
    import re2

    if budget.left <= 0:
        raise ValueError("the patterns of this file are too many and too large; the rest is not looked at")
    try:
        compiled = re2.compile(pattern, _options())
    except re2.error as error:
        said = error.args[0].decode("utf-8", "replace") if error.args else ""
        budget.left -= REFUSED_STEPS if "too large" in said else len(pattern)
        raise ValueError(f"the pattern is refused: {said}{_what_re2_lacks(said)}") from None
    budget.left -= compiled.programsize
    if compiled.programsize > largest:
        raise ValueError(f"the pattern is too large: {compiled.programsize} steps, and {largest} are allowed")
    return _Pattern(pattern, compiled.search, compiled.programsize)


def _escape(text: str) -> str:
    """The pattern for just this text: RE2 takes a backslash before any ASCII punctuation."""
    return re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)


_RE2_LACKS = {
    r"invalid perl operator: \(\?<?[=!]": (
        "lookahead or lookbehind",
        "make it two conditions: the one pattern in `all`, the other in `all` or `not`",
    ),
    r"invalid perl operator: \(\?>": ("atomic groups", "write (?:...): it never goes back anyway"),
    r"invalid escape sequence: \\[1-9gk]": ("backreferences", "write the words out, as an array of patterns"),
    r"bad repetition operator: .\+": ("possessive quantifiers", "leave the second sign out: it never goes back anyway"),
    r"invalid repetition size": ("repetitions of more than 1000 times", "write {1000} or *"),
}


def _what_re2_lacks(reason: str) -> str:
    for sign, (lack, instead) in _RE2_LACKS.items():
        if re.match(sign, reason):
            return f"; RE2, which keeps every pattern fast, has no {lack}; {instead}"
    return ""


MATCHES: dict[str, Callable[[str, Place], Test]] = {
    "is": _is,
    "contains": _contains,
    "matches": _glob,
    "regex": _regex,
}
"""The kinds of match that a table chooses from."""


def show_text(text: Text) -> str:
    """A text value for an explanation."""
    return quoted(text.value)


# --- numbers -----------------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
_SIGN = re.compile(r"\s*(>=|<=|>|<|=)?\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]{1,300}(?:\.[0-9]{1,300})?")


def number_test(value: object, place: Place, parse: Callable[[str], float], example: str) -> Test:
    """Comparisons such as ">= 5", of what ``parse`` reads; a number alone must be equal; an array means any."""
    return each(value, place, lambda item, _place: _comparison(item, parse, example))


def _comparison(value: object, parse: Callable[[str], float], example: str) -> Test:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f'expected a comparison such as "{example}" or a number, not {kind(value)}')
    if not isinstance(value, str):
        if not is_finite(value):
            raise ValueError("expected a finite number")
        return Test(f"{value:,}", lambda found: bool(found == value))
    sign, text = _SIGN.fullmatch(value).groups()  # type: ignore[union-attr] # it matches every string
    try:
        wanted = parse(text)
    except ValueError as error:
        raise ValueError(f'expected a comparison such as "{example}", not "{value}": {error}') from None
    compare = _COMPARISONS[sign or "="]
    return Test(f"{sign} {text}" if sign else text, lambda found: compare(found, wanted))


def is_finite(value: float) -> bool:
    """Whether a number of TOML can be reckoned with: no nan, no inf, no integer beyond all floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def parse_number(text: str) -> float:
    """A decimal number; ValueError where it is none."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f'"{text}" is no number')
    return float(text)
