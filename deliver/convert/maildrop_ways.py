"""The ways through a maildrop filter: what holds on each, what its variables are, and where ways become one again."""

import re
from collections.abc import Callable
from typing import NamedTuple

from deliver.convert.formulas import FALSE, Formula, Guard, all_of, excluded, untold
from deliver.convert.maildrop_logic import joined, parts_of
from deliver.convert.maildrop_values import EMPTY, Mystery, Value

MOST_WAYS = 64
"""Ways through a file that are followed at once; what differs in more of them is unknown from there on."""

_LOOSE = re.compile(r"MATCH[0-9]*|RETURNCODE")
"""Variables that the next pattern or command sets anew: no way of its own for each value."""


class State(NamedTuple):
    """One way to here: what holds on it (any of the paths), and its variables.

    ``doubts`` are lines whose deliveries nobody can tell: the original may have placed there what comes here.
    """

    paths: tuple[Guard, ...]
    variables: dict[str, Value]
    doubts: tuple[int, ...] = ()

    def under(self, formula: Formula) -> "State | None":
        """The way on where the formula holds as well; None where it cannot."""
        paths = [all_of((*path, formula)) for path in self.paths]
        left = [one for one in paths if one != FALSE and not excluded((one,))]
        return self._replace(paths=tuple(joined(map(parts_of, left)))) if left else None

    def with_value(self, name: str, value: Value) -> "State":
        """The way with a variable set."""
        return self._replace(variables={**self.variables, name: value})


def merged(states: list[State], line: int, matters: Callable[[str, int], bool]) -> list[State]:
    """Ways with the same variables become one; ``matters`` says whether anything below a line asks for a variable."""

    def kept(state: State) -> dict[str, Value]:
        return {
            name: value
            for name, value in state.variables.items()
            if value != EMPTY and not _LOOSE.fullmatch(name) and matters(name, line)
        }

    groups: list[list[State]] = []
    for state in states:
        for group in groups:
            if kept(group[0]) == kept(state):
                group.append(state)
                break
        else:
            groups.append([state])
    if len(groups) > MOST_WAYS:
        groups = [states]
    return [_one(group, line) for group in groups]


def _one(group: list[State], line: int) -> State:
    """One way for several; what is not the same on all is unknown."""
    if len(group) == 1:
        return group[0]
    names = {name for state in group for name in state.variables}
    unsure: Value = (Mystery(f"it depends on what was done above line {line}"),)
    said = {}
    for name in names:
        found = [state.variables.get(name, EMPTY) for state in group]
        said[name] = found[0] if all(one == found[0] for one in found) else unsure
    doubts = dict.fromkeys(line for state in group for line in state.doubts)
    return State(tuple(joined(path for state in group for path in state.paths)), said, tuple(doubts))


def more_untold(after: State, before: State) -> bool:
    """Whether a rule may be unable to tell what has been asked since: such a question stays with the rules below."""
    known_before = [part for path in before.paths for part in path]
    return any(untold(part) for path in after.paths for part in path if part not in known_before)
