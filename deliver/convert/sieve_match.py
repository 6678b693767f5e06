"""What the variables of a Sieve script hold (RFC 5229), each value with the messages for which it is that, and what a
match has put into them as placeholders of ours.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from deliver.convert.formulas import TRUE, Formula, Guard, all_of, any_way, excluded, negated
from deliver.convert.patterns import Untranslatable
from deliver.convert.sieve_source import Command

MOST = 24
"""Values of one variable that are told apart, and rules that one command may become."""

Held: TypeAlias = dict[str, str | None]
"""Variables by their names in small letters. A value is text as our rules have it, in which a placeholder stands for
what comes of the message and a brace is doubled; None where nobody knows it.
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


# --- what a match holds ------------------------------------------------------------------------------------------

_WHOLE = {
    ("header", "subject", "all"): "subject",
    ("header", "message-id", "all"): "message-id",
    ("address", "from", "all"): "from",
    ("address", "from", "localpart"): "from-user",
    ("address", "from", "domain"): "from-domain",
    ("address", "to", "detail"): "extension",
    ("envelope", "from", "all"): "sender",
    ("envelope", "from", "localpart"): "sender-user",
    ("envelope", "from", "domain"): "sender-domain",
    ("envelope", "to", "all"): "recipient",
    ("envelope", "to", "user"): "user",
    ("envelope", "to", "detail"): "extension",
    ("envelope", "to", "domain"): "domain",
    ("currentdate", "year", "all"): "year",
    ("currentdate", "month", "all"): "month",
    ("currentdate", "day", "all"): "day",
    ("currentdate", "date", "all"): "date",
}
"""The placeholder for all that a test looks at: its name, its field, part of the envelope or of the time, the part of
the address.
"""

_EVERYTHING = {"matches": ("*",), "regex": ("(.*)", "^(.*)$", "(.+)", "^(.+)$")}

# In List-Id, "<announce.lists.example.org>": all of it, or its first label.
_LIST = re.compile(r"<(?:\*|\((?:\.[*+]|\[[^]]*\][*+])\))>")
_LABEL = re.compile(r"<(?:\*\.|\((?:\[\^[^]]*\.[^]]*\]|\[[^].^][^].]*\])[*+]\)(?:\\\.|\[@?\.@?\]))")

SMALL = frozenset("list-id list-name from-domain sender-domain domain extension year month day date".split())
"""Placeholders whose values are in small letters, or become so in a folder's name."""


def captured(test: Command, kind: str, fields: Sequence[str], part: str, keys: Sequence[str]) -> list[str | None]:
    """The values of ${0}, ${1} and so on once the test holds; None where no placeholder stands for one.

    ``kind`` is "matches" or "regex", ``fields`` and ``part`` are what the test looks at, ``keys`` its patterns.
    """
    if len(fields) != 1 or len(keys) != 1:
        return [None] * 10
    field, key = fields[0].lower(), keys[0]
    whole = _WHOLE.get((test.name, field, part))
    if whole and key in _EVERYTHING[kind]:
        return [f"{{{whole}}}"] * 2
    if (test.name, field, part, key) == ("address", "from", "all", "*@*"):
        return ["{from}", "{from-user}", "{from-domain}"]
    found: list[str | None] = [None] * (_groups(key, kind) + 1)
    if (test.name, field) == ("header", "list-id"):
        for pattern, placeholder in ((_LIST, "{list-id}"), (_LABEL, "{list-name}")):
            if one := pattern.search(key):
                found[_groups(key[: one.start()], kind) + 1] = placeholder
    return found


def _groups(key: str, kind: str) -> int:
    """How many variables a pattern fills, or the part of one."""
    signs = r"\\.|([*?])" if kind == "matches" else r"\\.|\[\]?[^]]*\]|(\()"
    return sum(bool(one) for one in re.findall(signs, key))
