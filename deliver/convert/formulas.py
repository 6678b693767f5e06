"""What a filter asks of a message, between its own language and our [rule.when] tables: conditions with all, any, not.

Other languages nest their questions and go on after an answer; our rules stand one below the other. Formulas are what
the way to a statement is reckoned with.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

_TEXTS = frozenset("from to cc reply-to subject list-id message-id sender recipient extension body".split())
"""Conditions whose value may be an array of texts, any of which will do."""

_UNTOLD = frozenset({"body", "attachment"})
"""Conditions of which our rules may say that nobody can tell, and then pass the rule over, with `not` or without: here
of a text that is too long to be read whole, and of an archive that cannot be read. Of `duplicate` nobody can tell where
a message has no Message-ID, and such a one is no duplicate to other filters.
"""


@dataclass(frozen=True)
class Leaf:
    """One condition: ``key = value`` in a [rule.when] table."""

    key: str
    value: Any

    def __hash__(self) -> int:
        """A value may be a table or an array; equal tables have the same characters, in whatever order."""
        value = self.value
        return hash((self.key, value if isinstance(value, str) else "".join(sorted(repr(value)))))


@dataclass(frozen=True)
class Not:
    """That another does not hold."""

    part: "Formula"


@dataclass(frozen=True)
class All:
    """That all parts hold; without parts, every message."""

    parts: tuple["Formula", ...]


@dataclass(frozen=True)
class AnyOf:
    """That one of the parts holds; without parts, no message."""

    parts: tuple["Formula", ...]


Formula: TypeAlias = Leaf | Not | All | AnyOf
Guard: TypeAlias = tuple[Formula, ...]
"""Formulas that must all hold on the way to a statement."""

TRUE, FALSE = All(()), AnyOf(())


def negated(formula: Formula) -> Formula:
    """That it does not hold."""
    if isinstance(formula, Not):
        return formula.part
    return FALSE if formula == TRUE else TRUE if formula == FALSE else Not(formula)


def all_of(formulas: Iterable[Formula]) -> Formula:
    """That all hold, in the simplest words."""
    parts = _flat(formulas, All)
    if FALSE in parts or any(negated(part) in parts for part in parts):
        return FALSE
    return next(iter(parts)) if len(parts) == 1 else All(tuple(parts))


def any_of(formulas: Iterable[Formula]) -> Formula:
    """That one of them holds, in the simplest words."""
    parts = _flat(formulas, AnyOf)
    if TRUE in parts or any(negated(part) in parts for part in parts):
        return TRUE
    return next(iter(parts)) if len(parts) == 1 else AnyOf(tuple(parts))


def any_way(ways: Iterable[Formula]) -> Formula:
    """As any_of, without what another way says: A, or B without A, is A or B."""
    parts = [list(literals((way,))) for way in ways]
    for index, part in enumerate(parts):
        others = [one[0] for other, one in enumerate(parts) if other != index and len(one) == 1]
        said = [each for one in others for each in (one.parts if isinstance(one, AnyOf) else (one,))]
        parts[index] = [one for one in part if negated(one) not in said]
    return any_of(all_of(part) for part in parts)


def _flat(formulas: Iterable[Formula], kind: type[All] | type[AnyOf]) -> dict[Formula, None]:
    """The formulas, those of this kind opened, each once and in their order."""
    parts: dict[Formula, None] = {}
    for formula in formulas:
        parts.update(dict.fromkeys(formula.parts if isinstance(formula, kind) else (formula,)))
    return parts


def literals(guard: Iterable[Formula]) -> dict[Formula, None]:
    """The guard in its smallest parts, each once and in their order: All opened, and Not of AnyOf as several Not."""
    found: dict[Formula, None] = {}
    for formula in guard:
        if isinstance(formula, All):
            found.update(literals(formula.parts))
        elif isinstance(formula, Not) and isinstance(formula.part, AnyOf):
            found.update(literals(negated(part) for part in formula.part.parts))
        else:
            found[formula] = None
    return found


def leaves(formula: Formula) -> list[Leaf]:
    """The conditions in it, whether negated or not."""
    match formula:
        case Leaf():
            return [formula]
        case Not(part):
            return leaves(part)
        case All(parts) | AnyOf(parts):
            return [one for part in parts for one in leaves(part)]


def excluded(guard: Iterable[Formula]) -> bool:
    """Whether it is plain that no message can fulfil all of it; False where nothing is known."""
    known = literals(guard)
    for one in known:
        if one == FALSE or negated(one) in known:
            return True
        if isinstance(one, Not) and isinstance(one.part, All) and _within(one.part.parts, known):
            return True
        if isinstance(one, AnyOf) and all(negated(part) in known for part in one.parts):
            return True
    return False


def _within(parts: Iterable[Formula], known: Container[Formula]) -> bool:
    return all(part in known for part in literals(parts))


def covered(guard: Guard, ended: Iterable[Guard]) -> bool:
    """Whether every message that fulfils the guard fulfils one of ``ended``, as far as is plain."""
    known = literals(guard)
    return any(_within(one, known) for one in ended)


def shortened(guard: Guard, ended: Sequence[Guard]) -> Guard:
    """The guard without what needs no saying once rules above have placed what fulfils one of ``ended``.

    What a rule may be unable to tell stays: a message that it passed over would else come under its contrary.
    """
    kept = literals(guard)
    dropped: dict[Formula, set[Formula]] = {}  # each with what it rests on
    saying: dict[Formula, list[dict[Formula, None]]] = {}  # the ends in which a formula stands, or is one of several
    for end in ended:
        parts = literals(end)
        for part in parts:
            for each in (part, *(part.parts if isinstance(part, AnyOf) else ())):
                saying.setdefault(each, []).append(parts)
    for one in list(kept):
        if not isinstance(one, Not) or untold(one.part):
            continue
        wanted = {one.part: None, **literals((one.part,))}
        for parts in (parts for each in wanted for parts in saying.get(each, ())):
            others = [part for part in parts if not any(_implies(each, part) for each in wanted)]
            if all((part in kept and part != one) or one not in dropped.get(part, {one}) for part in others):
                del kept[one]
                dropped[one] = set(others).union(*(dropped[part] for part in others if part in dropped))
                break
    return tuple(_narrowed(kept))


def _implies(one: Formula, other: Formula) -> bool:
    return one == other or (isinstance(other, AnyOf) and one in other.parts)


def _narrowed(known: Iterable[Formula]) -> Iterable[Formula]:
    """Of "not all of these", only those that the rest of the guard does not say already."""
    narrow: dict[Formula, None] = {}
    for one in known:
        if isinstance(one, Not) and isinstance(one.part, All):
            if any(negated(part) in known for part in literals(one.part.parts)):
                continue
            rest = [part for part in literals(one.part.parts) if part not in known]
            one = negated(all_of(rest))  # noqa: PLW2901
        narrow[one] = None
    return narrow


def untold(formula: Formula) -> bool:
    """Whether our rules may find that nobody can tell."""
    match formula:
        case Leaf(key):
            return key in _UNTOLD
        case Not(part):
            return untold(part)
        case All(parts) | AnyOf(parts):
            return any(untold(part) for part in parts)


# --- as tables ---------------------------------------------------------------------------------------------------


def table(formula: Formula) -> dict[str, Any]:
    """The [rule.when] table; empty for every message. FALSE has none, and must not come here."""
    match formula:
        case Leaf(key, value):
            return {key: value}
        case Not(AnyOf(parts)):
            return {"not": [table(part) for part in _merged(parts)]}
        case Not(part):
            return {"not": table(part)}
        case All(parts):
            return _together([table(part) for part in parts])
        case AnyOf(parts):
            merged = _merged(parts)
            return table(merged[0]) if len(merged) == 1 else {"any": [table(part) for part in merged]}


def _together(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """One table of all, as far as its keys may stand in it only once."""
    joined: dict[str, Any] = {}
    rest: list[dict[str, Any]] = []
    for one in tables:
        for key, value in one.items():
            known = joined.get(key)
            if known is None:
                joined[key] = value
            elif key == "not":
                joined[key] = [*_listed(known), *(one for one in _listed(value) if one not in _listed(known))]
            elif key in {"header", "header-count"} and not set(known).intersection(value):
                joined[key] = {**known, **value}
            else:
                rest.append({key: value})
    if rest:
        joined["all"] = [*joined.get("all", []), *rest]
    return joined


def _merged(parts: Iterable[Formula]) -> list[Formula]:
    """The parts, with those that ask for one of several texts in the same place joined to one."""
    merged: list[Formula] = []
    places: dict[str, int] = {}
    for part in parts:
        place, texts = _place(part)
        if place and place in places:
            index = places[place]
            before = _place(merged[index])[1]
            merged[index] = _at(place, [*before, *(text for text in texts if text not in before)])
        else:
            if place:
                places[place] = len(merged)
            merged.append(part)
    return merged


def _place(part: Formula) -> tuple[str, list[Any]]:
    if isinstance(part, Leaf) and part.key in _TEXTS:
        return part.key, _listed(part.value)
    if isinstance(part, Leaf) and part.key == "header" and len(part.value) == 1:
        ((name, value),) = part.value.items()
        return f"header {name}", _listed(value)
    return "", []


def _at(place: str, texts: list[Any]) -> Leaf:
    _, header, name = place.partition("header ")
    return Leaf("header", {name: texts}) if header else Leaf(place, texts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
