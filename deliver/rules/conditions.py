"""The conditions of [rule.when]: one function and one line of CONDITIONS each.

A compile function takes the condition's name, what stands behind it in the file, and the Place where that is. It
returns the Condition, or raises ValueError with a sentence that says what was expected. Whoever calls it tells that to
the Place and goes on with a stand-in, so that every error of a file is found at once.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from deliver.rules.model import Condition, Text, View
from deliver.units import parse_size
from deliver.values import Problem

T = TypeVar("T")

DEEPEST = 16
"""Levels of `all`, `any` and `not` in each other."""

LARGEST_REGEX = 10_000
"""Steps of a compiled pattern, as RE2 counts them (a \\pL has 1200); this takes some 0.1 s for FIELD_CAP."""

STEPS_PER_FILE = 500_000
"""Steps of all patterns in one file: a thousand rules of words have 100,000, compiled in under a second."""

REFUSED_STEPS = 25_000
"""What a pattern counts for that RE2 gives up as too large, which takes it 0.1 s."""

LONGEST_SHOWN = 72
"""Characters of a value or pattern that an explanation quotes."""


class Budget:
    """What compiling one file's patterns may still cost, in RE2's steps: a user's file must not hold up others."""

    def __init__(self) -> None:
        self.left = STEPS_PER_FILE


class Place(NamedTuple):
    """Where in a file something stands, and where to say what is wrong with it."""

    path: tuple[str | int, ...]
    problems: list[Problem]
    budget: Budget

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


Compile = Callable[[str, object, Place], Condition]

EVERY_MESSAGE = Condition("every message", lambda _view: True, lambda _view: "it is for every message")
"""The condition of a rule without `when`, and the stand-in for one that cannot be compiled."""


def compile_when(table: object, place: Place, rule_keys: Iterable[str]) -> Condition:
    """The condition that a [rule.when] table makes: all of its keys. What is wrong with it goes to ``place``.

    ``rule_keys`` are keys that belong to the rule itself, to recognise them when they slip in here.
    """
    return place.attempt(lambda: _table(table, place, frozenset(rule_keys), 0), EVERY_MESSAGE)


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
    return '"' + "".join(char if char.isprintable() else "\ufffd" for char in shown) + '"'


def closest(word: str, among: Iterable[str]) -> str:
    """'; did you mean "subject"?' for "sbject", "" where nothing is near."""
    import difflib

    near = difflib.get_close_matches(word.lower(), list(among), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


# --- all, any, not -----------------------------------------------------------------------------------------------


def _table(table: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if not isinstance(table, dict):
        raise ValueError(f"expected a table of conditions, not {kind(table)}")
    if not table:
        raise ValueError("there is no condition in it; a rule for every message has none of these at all")
    if depth > DEEPEST:
        raise ValueError(f"conditions lie in each other more than {DEEPEST} deep")

    def compiled(name: str) -> Condition:
        below = place.at(name)
        return below.attempt(lambda: _condition(name, table[name], below, rule_keys, depth), EVERY_MESSAGE)

    return _all([compiled(name) for name in table])


def _condition(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if name in CONDITIONS:
        return CONDITIONS[name](name, value, place)
    if name in _COMBINATIONS:
        return _combination(name, value, place, rule_keys, depth + 1)
    if name in _COMING:
        raise ValueError(f'condition "{name}" is not there yet')
    if name in rule_keys:
        raise ValueError(f'"{name}" belongs to the rule, above [rule.when]')
    hint = closest(name, NAMES)
    if not hint and "-" in name:
        hint = f'; a header field is written header = {{ "{name}" = ... }}'
    raise ValueError(f'unknown condition "{name}"{hint}')


def _combination(name: str, value: object, place: Place, rule_keys: frozenset[str], depth: int) -> Condition:
    if isinstance(value, dict) and name == "not":
        return _none([_table(value, place, rule_keys, depth)])
    if not isinstance(value, list):
        single = f"{name} = {{ ... }} or " if name == "not" else ""
        raise ValueError(f"expected {single}{name} = [{{ ... }}, {{ ... }}], not {kind(value)}")
    if not value:
        raise ValueError("the array is empty")

    def compiled(index: int) -> Condition:
        below = place.at(index)
        return below.attempt(lambda: _table(value[index], below, rule_keys, depth), EVERY_MESSAGE)

    return _COMBINATIONS[name]([compiled(index) for index in range(len(value))])


def _all(parts: Sequence[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]

    def why(view: View) -> str:
        missing = next((part for part in parts if not part.matches(view)), None)
        return missing.why(view) if missing else "; ".join(part.why(view) for part in parts)

    return Condition(
        f"({' and '.join(part.words for part in parts)})",
        lambda view: all(part.matches(view) for part in parts),
        why,
        any(part.for_spam for part in parts),
    )


def _any(parts: Sequence[Condition]) -> Condition:
    if len(parts) == 1:
        return parts[0]

    def why(view: View) -> str:
        first = next((part for part in parts if part.matches(view)), None)
        return first.why(view) if first else "; ".join(part.why(view) for part in parts)

    return Condition(
        f"({' or '.join(part.words for part in parts)})",
        lambda view: any(part.matches(view) for part in parts),
        why,
        any(part.for_spam for part in parts),
    )


def _none(parts: Sequence[Condition]) -> Condition:
    unwanted = _any(parts)

    def why(view: View) -> str:
        return f"{unwanted.why(view)}, and `not` excludes it" if unwanted.matches(view) else unwanted.why(view)

    return Condition(f"not {unwanted.words}", lambda view: not unwanted.matches(view), why)


_COMBINATIONS = {"all": _all, "any": _any, "not": _none}


# --- what stands in a message ------------------------------------------------------------------------------------


class Test(NamedTuple):
    """What one value must be. ``words`` goes before or behind the value: 'like "*.pdf"'."""

    words: str
    accepts: Callable[[Any], bool]


_ANYTHING = Test("anything", lambda _value: True)


def leaf(
    name: str,
    test: Test,
    values: Callable[[View], Sequence[T]],
    show: Callable[[T], str],
    *,
    for_spam: bool = False,
) -> Condition:
    """The condition that any one of the message's ``values`` passes the test; ``show`` puts one in words."""
    words, accepts = test

    def matches(view: View) -> bool:
        for value in values(view):  # noqa: SIM110 - a generator costs a third more, and rules come by the thousand
            if accepts(value):
                return True
        return False

    def why(view: View) -> str:
        seen = values(view)
        if not seen:
            return f"there is no {name} (wanted: {words})"
        first = next((value for value in seen if accepts(value)), None)
        if first is not None:
            return f"{name} is {show(first)}" + ("" if show(first) == words else f", {words}")
        more = f" and {len(seen) - 1} more" if seen[1:] else ""
        return f"{name} is {show(seen[0])}{more}, not {words}"

    return Condition(f"{name} {words}", matches, why, for_spam)


def _each(value: object, place: Place, one: Callable[[object, Place], Test]) -> Test:
    """A test for a value or for an array of them: any."""
    if not isinstance(value, list):
        return one(value, place)
    if not value:
        raise ValueError("the array is empty: nothing would match")

    def compiled(index: int) -> Test:
        below = place.at(index)
        return below.attempt(lambda: one(value[index], below), _ANYTHING)

    tests = [compiled(index) for index in range(len(value))]
    if len(tests) == 1:
        return tests[0]
    return Test(" or ".join(test.words for test in tests), lambda found: any(test.accepts(found) for test in tests))


# --- text --------------------------------------------------------------------------------------------------------


def text_test(value: object, place: Place) -> Test:
    """A string is a glob; a table chooses; an array means any."""
    return _each(value, place, _one_text_test)


def _one_text_test(value: object, place: Place) -> Test:
    if isinstance(value, str):
        return _glob(value, place)
    if not isinstance(value, dict):
        raise ValueError(
            f'expected a string such as "*word*" or a table such as {{ contains = "word" }}, not {kind(value)}'
        )
    if len(value) != 1:
        raise ValueError(f"expected a table with exactly one of {', '.join(_MATCHES)}")
    (key, wanted), *_ = value.items()
    if key not in _MATCHES:
        raise ValueError(f'unknown kind of match "{key}"{closest(key, _MATCHES)} (there are {", ".join(_MATCHES)})')
    below = place.at(key)
    return below.attempt(lambda: _each(wanted, below, lambda item, where: _pattern(key, item, where)), _ANYTHING)


def _pattern(key: str, value: object, place: Place) -> Test:
    if not isinstance(value, str):
        raise ValueError(f"expected a string or an array of strings, not {kind(value)}")
    if not value and key in {"contains", "regex"}:
        raise ValueError("the string is empty: everything would match")
    return _MATCHES[key](value, place)


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
        search = _re2(f"^(?s:{pattern})$", place.budget)
        return Test(words, lambda text: search(text.value) is not None)
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
    search = _re2(pattern, place.budget)
    return Test(f"matching {quoted(pattern)}", lambda text: search(text.value) is not None)


def _re2(pattern: str, budget: Budget) -> Callable[[str], object]:
    """The search function of a pattern; ValueError says why RE2 refuses it."""
    import re2

    if budget.left <= 0:
        raise ValueError("the patterns of this file are too many and too large; the rest is not looked at")
    options = re2.Options()
    options.log_errors = False  # it logs to standard error, which must stay empty
    options.case_sensitive = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0].decode("utf-8", "replace") if error.args else ""
        budget.left -= REFUSED_STEPS if "too large" in said else len(pattern)
        raise ValueError(f"the pattern is refused: {said}{_what_re2_lacks(said)}") from None
    budget.left -= compiled.programsize
    if compiled.programsize > LARGEST_REGEX:
        raise ValueError(f"the pattern is too large: {compiled.programsize} steps, and {LARGEST_REGEX} are allowed")
    search: Callable[[str], object] = compiled.search
    return search


def _escape(text: str) -> str:
    """The pattern for just this text: RE2 takes a backslash before any ASCII punctuation."""
    return re.sub(r"[!-/:-@\[-`{-~]", r"\\\g<0>", text)


_RE2_LACKS = {
    r"invalid perl operator: \(\?<?[=!]": "lookahead or lookbehind",
    r"invalid perl operator: \(\?>": "atomic groups",
    r"invalid escape sequence: \\[1-9gk]": "backreferences",
    r"bad repetition operator: .\+": "possessive quantifiers",
    r"invalid repetition size": "repetitions of more than 1000 times",
}


def _what_re2_lacks(reason: str) -> str:
    lack = next((lack for sign, lack in _RE2_LACKS.items() if re.match(sign, reason)), "")
    return f"; RE2, which keeps every pattern fast, has no {lack}" if lack else ""


_MATCHES: dict[str, Callable[[str, Place], Test]] = {
    "is": _is,
    "contains": _contains,
    "matches": _glob,
    "regex": _regex,
}


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
    return _each(value, place, lambda item, _place: _comparison(item, parse, example))


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


def _parse_number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f'"{text}" is no number')
    return float(text)


# --- the conditions ----------------------------------------------------------------------------------------------

FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
"""A header field's name (RFC 5322 section 3.6.8), short enough for a line of encoded words (RFC 2047 section 2)."""


def _addresses(name: str, value: object, place: Place) -> Condition:
    return leaf(name, _address_test(value, place), lambda view: view.addresses(name), show_text)


def _address_test(value: object, place: Place) -> Test:
    def one(item: object, where: Place) -> Test:
        if isinstance(item, str) and item.startswith("@"):
            where.warn(f'"{item}" matches no address; write "*{item}" for all addresses of that domain')
        return _one_text_test(item, where)

    return _each(value, place, one)


def _envelope_address(name: str, value: object, place: Place) -> Condition:
    test = _address_test(value, place)
    return leaf(name, test, lambda view: [Text.of(getattr(view.facts.envelope, name))], show_text)


def _extension(name: str, value: object, place: Place) -> Condition:
    return leaf(name, text_test(value, place), lambda view: [Text.of(view.facts.envelope.extension)], show_text)


def _field(name: str, value: object, place: Place) -> Condition:
    return leaf(name, text_test(value, place), lambda view: view.texts(name), show_text)


def _subject(name: str, value: object, place: Place) -> Condition:
    def one(item: object, where: Place) -> Test:
        if isinstance(item, str) and item and not re.search(r"[*?]", re.sub(r"\\.", "", item)):
            where.warn(
                f'"{item}" matches only a subject that is just this; write "*{item}*" if it may stand within one'
            )
        return _one_text_test(item, where)

    return leaf(name, _each(value, place, one), lambda view: view.texts(name), show_text)


def _header(name: str, value: object, place: Place) -> Condition:
    if not isinstance(value, dict) or not value:
        raise ValueError(f'expected {name} = {{ "X-Name" = "*value*" }}')

    def compiled(field: str) -> Condition:
        below = place.at(field)
        return below.attempt(lambda: _named_field(field, value[field], below), EVERY_MESSAGE)

    return _all([compiled(field) for field in value])


def _named_field(field: str, value: object, place: Place) -> Condition:
    if not FIELD_NAME.fullmatch(field):
        raise ValueError(f'"{field}" is no header field\'s name: those are ASCII, without blanks and colons')
    return _field(field, value, place)


def _list_id(name: str, value: object, place: Place) -> Condition:
    def values(view: View) -> list[Text]:
        return [Text.of(_identifier(text.value)) for text in view.texts(name)]

    return leaf(name, text_test(value, place), values, show_text)


def _identifier(value: str) -> str:
    """What stands in the last <> (RFC 2919 section 3: a phrase may stand before it), else the value."""
    _, opened, rest = value.rpartition("<")
    inner, closed, _ = rest.partition(">")
    return inner.strip() if opened and closed else value


def _size(name: str, value: object, place: Place) -> Condition:
    test = number_test(value, place, parse_size, "> 10 MiB")
    return leaf(name, test, lambda view: [view.facts.content.size], lambda size: f"{size:,}")


def _score(name: str, value: object, place: Place) -> Condition:
    test = number_test(value, place, _parse_number, ">= 5")
    items = value if isinstance(value, list) else [value]
    above = any(isinstance(item, str) and item.lstrip().startswith(">") for item in items)

    def values(view: View) -> list[float]:
        return [] if view.score is None else [view.score]

    return leaf(name, test, values, lambda score: f"{score:g}", for_spam=above)


def _spam(name: str, value: object, _place: Place) -> Condition:
    return _truth(name, value, lambda view: view.spam, for_spam=value is True)


def _virus(name: str, value: object, place: Place) -> Condition:
    if isinstance(value, bool):
        return _truth(name, value, lambda view: bool(view.facts.viruses))
    return leaf(name, text_test(value, place), lambda view: [Text.of(one) for one in view.facts.viruses], show_text)


def _truth(name: str, value: object, holds: Callable[[View], bool], *, for_spam: bool = False) -> Condition:
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} = true or {name} = false, not {kind(value)}")
    words = str(value).lower()
    return leaf(
        name,
        Test(words, lambda found: found is value),
        lambda view: [holds(view)],
        lambda found: str(found).lower(),
        for_spam=for_spam,
    )


CONDITIONS: dict[str, Compile] = {
    "from": _addresses,
    "to": _addresses,
    "cc": _addresses,
    "reply-to": _addresses,
    "subject": _subject,
    "list-id": _list_id,
    "message-id": _field,
    "header": _header,
    "sender": _envelope_address,
    "recipient": _envelope_address,
    "extension": _extension,
    "size": _size,
    "score": _score,
    "spam": _spam,
    "virus": _virus,
}

_COMING = (
    "attachment",
    "body",
    "dkim",
    "is-bounce",
    "is-list",
    "date",
    "time",
    "weekday",
    "duplicate",
    "in",
)
"""Conditions of the language that nothing compiles yet."""

NAMES = frozenset({*CONDITIONS, *_COMBINATIONS, *_COMING})
"""All that can stand in [rule.when]."""
