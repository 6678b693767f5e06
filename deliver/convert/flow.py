"""A filter's statements, each with the conditions on the way to it, as rules that are asked one below the other.

In Sieve and procmail a message may be stored in one place and go on; of our rules the first that places a message ends
the walk, and only `copy` goes on. So a statement that stores becomes a placing rule where nothing behind it can do any
more to that message, and else a copy: what was copied and is not to be in the inbox is placed, in the same folder, by a
rule at the end. There a message that has a copy in that folder gets no second one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from deliver.convert.formulas import FALSE, Guard, all_of, covered, excluded, literals, shortened, table, untold
from deliver.convert.model import Converted
from deliver.convert.patterns import Untranslatable
from deliver.values import INBOX

_PLACING = ("file", "forward", "discard", "bounce")


class Does(Enum):
    """What a statement does with the message.

    STORE and SEND put it into a folder or send it on, in place of the inbox; COPY does that beside; DROP and REFUSE
    want it nowhere; ADD marks it; STOP ends the filter.
    """

    STORE = "file"
    SEND = "forward"
    COPY = "copy"
    DROP = "discard"
    REFUSE = "bounce"
    ADD = "add"
    STOP = "stop"


@dataclass
class Statement:
    """One statement. ``target`` is a folder, an address or a bounce's text, ``table`` what ADD puts into a rule.

    ``until`` is the statement by which a mark is gone again, by its place among all; None for one that stays.
    """

    does: Does
    guard: Guard
    line: int
    target: str = ""
    table: dict[str, Any] = field(default_factory=dict)
    comments: tuple[str, ...] = ()
    sees: str = "all"
    until: int | None = None


class Lost:
    """Guards against the loss of mail that the original may have kept, in a statement that no rule stands for."""

    def __init__(self) -> None:
        self._unsaid: list[tuple[Guard, int]] = []

    def note(self, guard: Guard, line: int) -> None:
        """The statement in this line may have taken what comes by this guard."""
        self._unsaid.append((guard, line))

    def check(self, guard: Guard) -> None:
        """Raises Untranslatable where what comes by this guard must not be deleted or given back."""
        for other, line in self._unsaid:
            if not excluded((*guard, *other)):
                raise Untranslatable(
                    f"it would lose mail that the original may have kept: see line {line}, which was not converted"
                )


@dataclass
class _Rule:
    line: int
    guard: Guard
    table: dict[str, Any]
    comments: list[str]


AT_THE_END = "What was copied above and is not to be in the inbox as well."


class Flow:
    """Turns statements, in their order, into rules.

    ``rules`` are the result. ``unreached`` are statements that no message can come to, ``blurred`` those that mark
    more of a message's places than the filter did: a flag or a header line of ours is on all of them.
    """

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.unreached: list[Statement] = []
        self.blurred: list[Statement] = []
        self._statements = statements
        self._rules: list[_Rule] = []
        self._pending: list[Statement] = []
        self._ended: list[Guard] = []
        self._comments: list[str] = []
        for index, statement in enumerate(statements):
            self._take(index, statement)
        last = statements[-1].line if statements else 1
        self._flush((), last)

    @property
    def rules(self) -> tuple[Converted, ...]:
        """The rules, in their order."""
        return tuple(
            Converted(
                rule.line,
                {**rule.table, **({"when": when} if (when := table(all_of(rule.guard))) else {})},
                tuple(rule.comments),
            )
            for rule in self._rules
        )

    @property
    def comments(self) -> tuple[str, ...]:
        """Those of statements at the end that needed no rule."""
        return tuple(self._comments)

    def _take(self, index: int, statement: Statement) -> None:
        self._comments += statement.comments
        guard = statement.guard
        if excluded(guard) or covered(guard, self._ended):
            if statement.does is not Does.STOP:
                self.unreached.append(statement)
            return
        match statement.does:
            case Does.STOP:
                self._flush(guard, statement.line)
                if not guard:
                    self._ended.append(guard)
                elif any(other.does is not Does.STOP for other in self._statements[index + 1 :]):
                    self._emit(guard, statement.line, {"file": INBOX})
            case Does.ADD:
                if self._shared(index, statement):
                    self.blurred.append(statement)
                self._emit(guard, statement.line, statement.table, statement.sees)
            case Does.COPY:
                self._emit(guard, statement.line, {"copy": statement.target})
            case Does.REFUSE:
                self._emit(guard, statement.line, {"bounce": statement.target or True})
            case Does.DROP if self._effects(index + 1, guard):
                self._pending.append(statement)
            case Does.DROP:
                self._flush(guard, statement.line)
                self._emit(guard, statement.line, {"discard": True})
            case Does.STORE | Does.SEND if self._effects(index + 1, guard):
                self._emit(guard, statement.line, {"copy": statement.target})
                self._pending.append(statement)
            case _:
                if statement.target == INBOX and self._needless(index, guard):
                    return
                self._emit(guard, statement.line, {statement.does.value: statement.target}, statement.sees)

    def _effects(self, start: int, guard: Guard) -> bool:
        """Whether a statement from ``start`` on may do more to a message that comes by this guard."""
        for other in self._statements[start:]:
            if other.does is Does.STOP and covered(guard, [other.guard]):
                return False
            if other.does not in {Does.STOP, Does.DROP} and not excluded((*guard, *other.guard)):
                return True
        return False

    def _needless(self, index: int, guard: Guard) -> bool:
        """Whether the inbox is where the message goes without this, since nothing before or behind says otherwise."""
        before = any(not excluded((*guard, *other.guard)) for other in self._pending)
        return not before and all(other.does is Does.STOP for other in self._statements[index + 1 :])

    def _shared(self, index: int, statement: Statement) -> bool:
        """Whether a message has places, too, on which its mark is not wanted."""
        if not {"flag", "add-header", "remove-header", "tag-subject"}.intersection(statement.table):
            return False
        until = len(self._statements) if statement.until is None else statement.until
        meant = False
        for at, other in enumerate(self._statements):
            if excluded((*statement.guard, *other.guard)):
                continue
            if other.does is Does.DROP or index <= at < until:
                meant = meant or other.does in {Does.STORE, Does.SEND, Does.DROP}
            elif other.does in {Does.STORE, Does.SEND, Does.COPY} and not covered(other.guard, self._ended):
                return True
        return statement.until is not None and not meant

    def _flush(self, guard: Guard, line: int) -> None:
        """Keep out of the inbox what comes by this guard and was copied elsewhere, or is wanted nowhere."""
        pending = [one for one in reversed(self._pending) if not excluded((*guard, *one.guard))]
        first = True
        for statement in sorted(pending, key=lambda one: one.does is Does.DROP):
            both = (*guard, *(one for one in literals(statement.guard) if one not in literals(guard)))
            if covered(both, self._ended):
                continue
            placed: dict[str, Any] = {"discard": True}
            if statement.does is not Does.DROP:
                placed = {statement.does.value: statement.target}
            if first and not self._joins(both):
                self._comments.append(AT_THE_END)
            first = False
            self._emit(both, line, placed)

    def _joins(self, guard: Guard) -> bool:
        return bool(self._rules) and self._rules[-1].guard == shortened(guard, self._ended)

    def _emit(self, guard: Guard, line: int, said: dict[str, Any], sees: str = "all") -> None:
        """A rule of its own, or more of the one just above where that is asked the same."""
        if covered(guard, self._ended):
            return
        short = shortened(guard, self._ended)
        if all_of(short) == FALSE:
            return
        last = self._rules[-1] if self._rules else None
        placing = any(key in said for key in _PLACING)
        if placing and any(untold(one) for one in literals(guard)) and {"discard", "bounce"}.intersection(said):
            short = tuple(literals(guard))
        whole = said if sees == "ham" else {"sees": sees, **said}
        if last and last.guard == short and self._fits(last.table, whole):
            last.table = _joined(last.table, whole)
            last.comments += self._comments
        else:
            self._rules.append(_Rule(line, short, dict(whole), self._comments))
        self._comments = []
        if placing:
            self._ended.append(short)

    def _fits(self, above: dict[str, Any], said: dict[str, Any]) -> bool:
        if any(key in above for key in _PLACING) or above.get("sees") != said.get("sees"):
            return False
        return not set(above).intersection(said) - {"sees", "copy", "flag", "add-header", "remove-header"}


def _joined(above: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    joined = dict(above)
    for key, value in said.items():
        if key in {"copy", "flag", "remove-header"} and key in joined:
            values = list(dict.fromkeys([*_each(joined[key]), *_each(value)]))
            joined[key] = values if len(values) > 1 else values[0]
        elif key == "add-header" and key in joined:
            joined[key] = {**joined[key], **value}
        else:
            joined[key] = value
    copies = [one for one in _each(joined.get("copy", [])) if one not in _each(joined.get("file", []))]
    copies = [one for one in copies if one not in _each(joined.get("forward", []))]
    joined.pop("copy", None)
    if copies:
        joined = {key: value for key, value in joined.items() if key == "sees"} | {
            "copy": copies if len(copies) > 1 else copies[0],
            **{key: value for key, value in joined.items() if key != "sees"},
        }
    return joined


def _each(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else [value]
