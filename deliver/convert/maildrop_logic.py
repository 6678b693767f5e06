"""Formulas with parts that no condition of ours can say, and the ways through a file on which they hold."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from deliver.convert.formulas import FALSE, All, AnyOf, Formula, Guard, Leaf, Not, all_of, any_of, leaves, negated

SPAM = Leaf("spam", True)

_UNKNOWN = "?"


class Unknown(NamedTuple):
    """What no condition says: why, and in which line it stands."""

    reason: str
    line: int


def unknown(reason: str, line: int) -> Formula:
    """A formula for what nobody can tell."""
    return Leaf(_UNKNOWN, Unknown(reason, line))


def surely(formula: Formula, otherwise: Formula = FALSE) -> Formula:
    """What implies the formula whatever its unknown parts are; with TRUE for them, what the formula implies."""
    match formula:
        case Leaf(key):
            return otherwise if key == _UNKNOWN else formula
        case Not(part):
            return negated(surely(part, negated(otherwise)))
        case All(parts):
            return all_of(surely(part, otherwise) for part in parts)
        case AnyOf(parts):
            return any_of(surely(part, otherwise) for part in parts)


def at_line(formula: Formula, line: int) -> Formula:
    """The formula with its unknown parts in that line, where somebody asks for them."""
    match formula:
        case Leaf(key, value):
            return unknown(value.reason, line) if key == _UNKNOWN else formula
        case Not(part):
            return negated(at_line(part, line))
        case All(parts):
            return All(tuple(at_line(part, line) for part in parts))
        case AnyOf(parts):
            return AnyOf(tuple(at_line(part, line) for part in parts))


def unknowns(formula: Formula) -> list[Unknown]:
    """Those in it, in order."""
    return [leaf.value for leaf in leaves(formula) if leaf.key == _UNKNOWN]


def parts_of(formula: Formula) -> Guard:
    """What must all hold for it."""
    return formula.parts if isinstance(formula, All) else (formula,)


def joined(paths: Iterable[Guard]) -> list[Guard]:
    """Paths that together say the same: where two differ in one formula that is true here and false there, it goes."""
    kept: list[Guard] = []
    for path in paths:
        _join(kept, path)
    return kept


def _join(kept: list[Guard], path: Guard) -> None:
    for index, other in enumerate(kept):
        here = [one for one in path if one not in other]
        there = [one for one in other if one not in path]
        if not there:
            return
        opposite = len(here) == 1 and len(there) == 1 and here[0] == negated(there[0])
        if not here or opposite:
            del kept[index]
            _join(kept, tuple(one for one in path if one in other) if opposite else path)
            return
    kept.append(path)


def says(path: Guard, *keys: str) -> bool:
    """Whether the path has a condition of these names."""
    return any(leaf.key in keys for part in path for leaf in leaves(part))


def value_of(path: Guard, key: str) -> Any:
    """What a path of spam alone asks of one more condition; None for any other path."""
    others = [part for part in path if part != SPAM]
    only = others[0] if len(others) == 1 and len(path) == 2 else None
    return only.value if isinstance(only, Leaf) and only.key == key else None
