"""What all conditions are made with: from a test and values to a condition, and from conditions to others.

A condition says yes, no, or None: nobody can tell. That passes through `all`, `any` and `not` as in Kleene's logic.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from deliver.rules.matching import Place, Test, closest, each, kind, one_text_test, quoted
from deliver.rules.model import CannotTell, Condition, View

T = TypeVar("T")

EVERY_MESSAGE = Condition("every message", lambda _view: True, lambda _view: "it is for every message")
"""The condition of a rule without `when`, and the stand-in for one that cannot be compiled."""


def every(parts: Sequence[Condition]) -> Condition:
    """The condition that all of them hold; there is one at least."""
    if len(parts) == 1:
        return parts[0]

    def matches(view: View) -> bool | None:
        answer: bool | None = True
        for part in parts:
            one = part.matches(view)
            if one is False:
                return False
            if one is None:
                answer = None
        return answer

    def why(view: View) -> str:
        answers = [(part.matches(view), part) for part in parts]
        decided = [part for answer, part in answers if answer is False]
        decided += [part for answer, part in answers if answer is None]
        return decided[0].why(view) if decided else "; ".join(part.why(view) for part in parts)

    return _combined(f"({' and '.join(part.words for part in parts)})", matches, why, parts)


def some(parts: Sequence[Condition]) -> Condition:
    """The condition that one of them holds; there is one at least."""
    if len(parts) == 1:
        return parts[0]

    def matches(view: View) -> bool | None:
        answer: bool | None = False
        for part in parts:
            one = part.matches(view)
            if one:
                return True
            if one is None:
                answer = None
        return answer

    def why(view: View) -> str:
        first = next((part for part in parts if part.matches(view)), None)
        return first.why(view) if first else "; ".join(part.why(view) for part in parts)

    return _combined(f"({' or '.join(part.words for part in parts)})", matches, why, parts)


def none(parts: Sequence[Condition]) -> Condition:
    """The condition that not one of them holds."""
    unwanted = some(parts)

    def matches(view: View) -> bool | None:
        answer = unwanted.matches(view)
        return None if answer is None else not answer

    def why(view: View) -> str:
        return f"{unwanted.why(view)}, and `not` excludes it" if unwanted.matches(view) else unwanted.why(view)

    return _combined(f"not {unwanted.words}", matches, why, parts)._replace(for_spam=False)


def _combined(
    words: str, matches: Callable[[View], bool | None], why: Callable[[View], str], parts: Sequence[Condition]
) -> Condition:
    for_spam, remembers = (any(getattr(part, name) for part in parts) for name in ("for_spam", "remembers"))
    return Condition(words, matches, why, for_spam, remembers)


def leaf(
    name: str,
    test: Test,
    values: Callable[[View], Sequence[T]],
    show: Callable[[T], str],
    *,
    for_spam: bool = False,
    unread: Callable[[View], str] | None = None,
) -> Condition:
    """The condition that any one of the message's ``values`` passes the test; ``show`` puts one in words.

    ``values`` may raise CannotTell. ``unread`` says why there may be more values than these, "" where there are not:
    where none of these passes, nobody can tell.
    """
    words, accepts = test

    def matches(view: View) -> bool | None:
        try:
            seen = values(view)
        except CannotTell:
            return None
        for value in seen:
            if accepts(value):
                return True
        return None if unread is not None and unread(view) else False

    def why(view: View) -> str:
        try:
            seen = values(view)
        except CannotTell as error:
            return f"{name} {words} cannot be told: {error}"
        first = next((value for value in seen if accepts(value)), None)
        if first is not None:
            return f"{name} is {show(first)}" + ("" if show(first) == words else f", {words}")
        doubt = unread(view) if unread is not None else ""
        doubt = doubt and f"; {doubt}, so that this cannot be told"
        if not seen:
            return f"there is no {name} (wanted: {words}){doubt}"
        more = f" and {len(seen) - 1} more" if seen[1:] else ""
        return f"{name} is {show(seen[0])}{more}, not {words}{doubt}"

    return Condition(f"{name} {words}", matches, why, for_spam)


def truth(name: str, value: object, holds: Callable[[View], bool], *, for_spam: bool = False) -> Condition:
    """The condition ``name = true`` or ``name = false``."""
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


def word(value: object, among: Sequence[str]) -> Test:
    """A test for one word out of a few."""
    if not isinstance(value, str) or value not in among:
        hint = closest(value, among) if isinstance(value, str) else ""
        said = quoted(value) if isinstance(value, str) else kind(value)
        raise ValueError(f"expected {' or '.join(map(quoted, among))}, not {said}{hint}")
    return Test(quoted(value), lambda found: bool(found == value))


def whole_text_test(name: str, value: object, place: Place) -> Test:
    """As ``text_test``, for texts of which rules name a part and seldom all."""

    def one(item: object, where: Place) -> Test:
        if isinstance(item, str) and item and not re.search(r"[*?]", re.sub(r"\\.", "", item)):
            where.warn(f'"{item}" matches only a {name} that is just this; write "*{item}*" if it may stand within one')
        return one_text_test(item, where)

    return each(value, place, one)
