"""Whether a rule that a converter has made is one, so that no file comes out that `deliver check` refuses."""

from collections.abc import Sequence

from deliver.convert.model import Converted, Reported
from deliver.rules import load


def accepted(line: int, text: str, table: dict[str, object], comments: tuple[str, ...] = ()) -> Converted | Reported:
    """The rule, or why it would be refused. ``line`` and ``text`` are where it comes from."""
    problems = load.load([table], "", user=False)[1]
    errors = [problem.text for problem in problems if not problem.warning]
    return Reported(line, text, errors[0]) if errors else Converted(line, table, comments)


def checked(rules: Sequence[Converted]) -> tuple[tuple[Converted, ...], list[Reported]]:
    """Those that stay, and a report for each that the loader refuses: its conditions lie too deep, or are too many."""
    kept: list[Converted] = []
    refused: list[Reported] = []
    for rule in rules:
        one = accepted(rule.line, f"the rule for line {rule.line}", rule.table, rule.comments)
        if isinstance(one, Converted):
            kept.append(one)
        else:
            refused.append(one._replace(reason=f"{one.reason}; the rules below are now asked about its mail, too"))
    if problems := [one for one in load.load([one.table for one in kept], "", user=True)[1] if not one.warning]:
        refused.append(Reported(kept[-1].line, "the whole file", problems[0].text))
    return tuple(kept), refused
