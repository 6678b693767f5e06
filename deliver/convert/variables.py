"""What the variables of a script hold, each value with the messages for which it is that."""

from collections.abc import Iterable
from typing import TypeAlias

from deliver.convert.formulas import TRUE, Formula, Guard, all_of, any_way, excluded, negated
from deliver.convert.patterns import Untranslatable

MOST = 24
"""Values of one variable that are told apart, and rules that one command may become."""

Held: TypeAlias = dict[str, str | None]
"""Values by variables' names; None where nobody knows one. Sieve's names are in small letters, and its values text as
our rules have it: a placeholder stands for what comes of the message, and a brace is doubled.
"""


def braced(text: str) -> str:
    """Text in which a brace is a brace, and begins no placeholder."""
    return text.replace("{", "{{").replace("}", "}}")


class Variables:
    """The values at one place of a script. Those of one name exclude each other, and each message has one of them."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Formula, str | None]]] = {}

    def worlds(self, names: Iterable[str], guard: Guard) -> list[tuple[Formula, Held]]:
        """What the names hold together for the messages that come by this guard, and for which of them. Raises
        Untranslatable where that are more than MOST.
        """
        worlds: list[tuple[Formula, Held]] = [(TRUE, {})]
        for name in sorted(set(names)):
            nobody = None if "." in name else ""  # a namespace (RFC 5229 section 3) is the server's
            worlds = [
                (both, {**held, name: value})
                for when, held in worlds
                for other, value in self._values.get(name, [(TRUE, nobody)])
                if not excluded((*guard, both := all_of([when, other])))
            ]
            if len(worlds) > MOST:
                raise Untranslatable(f"its variables have more than {MOST} values")
        return [(TRUE, worlds[0][1])] if len(worlds) == 1 else worlds

    def assign(self, name: str, guard: Guard, value: str | None) -> None:
        """What it holds from here on for messages that come by this guard; for others it stays what it was."""
        way = all_of(guard)
        ways: dict[str | None, list[Formula]] = {}
        for when, before in self._values.get(name, [(TRUE, "")]):
            if not excluded((when, rest := negated(way))):
                ways.setdefault(before, []).append(all_of([when, rest]))
        ways.setdefault(value, []).append(way)
        alternatives = [(any_way(whens), one) for one, whens in ways.items()]
        self._values[name] = alternatives if len(alternatives) <= MOST else [(TRUE, None)]
