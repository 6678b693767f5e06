"""Conditions with weights (procmailsc(5)) as plain ones: all ways in which they come to more than nothing."""

import itertools
from collections.abc import Sequence

from deliver.convert.formulas import FALSE, TRUE, Formula, all_of, any_of, negated

_HIGHEST = 2147483647_000
"""From this score on, or below its negative, nothing more is looked at; in thousandths."""


def more_than_nothing(conditions: Sequence[tuple[int, Formula]]) -> Formula:
    """Whether the weights of what holds come to more than nothing, in thousandths (procmailsc(5)): in the fewest words
    where no weight settles it alone.
    """
    if any(abs(weight) >= _HIGHEST for weight, _ in conditions):
        return _in_turn(conditions, 0)
    # What is for it: a condition of positive weight that holds, one of negative weight that does not.
    score = sum(weight for weight, _ in conditions if weight < 0)
    steps = [(abs(weight), holds if weight > 0 else negated(holds)) for weight, holds in conditions]
    least: list[tuple[int, ...]] = []
    for size in range(len(steps) + 1):
        for chosen in itertools.combinations(range(len(steps)), size):
            enough = score + sum(steps[index][0] for index in chosen) > 0
            if enough and not any(set(one) <= set(chosen) for one in least):
                least.append(chosen)
    return any_of(all_of(steps[index][1] for index in chosen) for chosen in least)


def _in_turn(conditions: Sequence[tuple[int, Formula]], score: int) -> Formula:
    """The same, where a weight beyond the highest score ends the reckoning."""
    if not conditions:
        return TRUE if score > 0 else FALSE
    (weight, holds), *others = conditions
    with_it = score + weight
    yes = _in_turn(others, with_it)
    if abs(weight) >= _HIGHEST:
        yes = TRUE if weight > 0 else FALSE
    no = _in_turn(others, score)
    return any_of([all_of([holds, yes]), all_of([negated(holds), no])])
