"""The expressions of a maildrop filter: what each is worth before there is a message, and when it is true."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from deliver.convert import maildrop_commands as commands
from deliver.convert import maildrop_values as values
from deliver.convert.formulas import FALSE, TRUE, Formula, all_of, any_of, leaves, negated
from deliver.convert.maildrop_commands import Effect
from deliver.convert.maildrop_logic import at_line, unknown, unknowns
from deliver.convert.maildrop_parse import Call, Expression, Operation, Pattern, Statement, Text
from deliver.convert.maildrop_patterns import in_message
from deliver.convert.maildrop_pcre import CannotSay
from deliver.convert.maildrop_values import EMPTY, Captured, Home, Imported, Mailbox, Mystery, Size, Value, known

ENVIRONMENT = frozenset("SENDER NEWSENDER RECIPIENT USER HOST LOCAL EXT LOGNAME".split())
"""What qmail-command(8) has in the environment and rules can ask for, or part of it."""

_COMPARISONS = frozenset({*"< <= > >= == !=".split(), *"lt le gt ge eq ne".split()})
_IN_PATTERN = re.compile(r"\\.|\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([^}]*)\}")
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_-]*)")
_MATCHES = ("MATCH", *(f"MATCH{number}" for number in range(1, 10)))
_SPECIAL = frozenset("FLAGS EXITCODE DEFAULT KEYWORDS MAILDROP_OLD_REGEXP".split())

Variables = Mapping[str, Value]


class Reader:
    """Reads one file's expressions. ``notes`` are lines with what is not quite the same in their patterns.

    ``site`` is true of a filter for all users of a host, as vpopmail calls it: its EXT is the user's name. ``changed``
    are fields that the filter itself writes. ``old`` says that patterns are those of maildrop 1. ``last_status`` is the
    exit code of the command in the value read last, None where there was none.
    """

    def __init__(self, block: Statement) -> None:
        self.site = False
        self.old = False
        self.changed: set[str] = set()
        self.notes: list[tuple[int, str]] = []
        self.last_status: Value | None = None
        self._assigned = frozenset(assigned(block))
        self._uses = _last_uses(block)
        self._captures: list[dict[int, Any]] = []
        self._unread = False  # whether MATCH1, MATCH2, ... come of a pattern that no condition stands for

    def matters(self, name: str, line: int = 0) -> bool:
        """Whether anything below a line depends on a variable."""
        return self._uses.get(name, 0) > line or name in _SPECIAL

    def variable(self, name: str, variables: Variables) -> Value:
        """What a variable is worth here; what a pattern to the left in the same condition has found comes first."""
        number = name.removeprefix("MATCH")
        if self._captures and number.isdigit() and int(number) in self._captures[-1]:
            return (Captured(self._captures[-1][int(number)]),)
        if name in variables:
            return self._local(variables[name])
        if name in ENVIRONMENT:
            return self._local((Imported(name),))
        if name in _PREDEFINED:
            return _PREDEFINED[name]
        if name.isdigit():
            return (Mystery(f"${name} is an argument of maildrop's command line"),)
        if name in self._assigned or name.startswith("MATCH") or name in ("FLAGS", "EXITCODE"):
            return EMPTY
        return (Mystery(f"nothing in the file says what {name} is"),)

    def _local(self, value: Value) -> Value:
        """With vpopmail's EXT as what it is there: the user's name."""
        if not self.site:
            return value
        return tuple(Imported("LOCAL") if part == Imported("EXT") else part for part in value)

    # --- values --------------------------------------------------------------------------------------------------

    def value(self, expression: Expression, variables: Variables, line: int) -> Value:
        """What an expression is worth; never raises."""
        self.last_status = None
        try:
            return self._value(expression, variables, line)
        except CannotSay as error:
            return (Mystery(str(error)),)

    def shell(self, expression: Expression, variables: Variables, line: int) -> Value:
        """A command for a shell, which knows all variables, in single quotes, too."""
        if isinstance(expression, Text):
            expression = Text(tuple((quote if quote == "`" else '"', text) for quote, text in expression.parts))
        return self.value(expression, variables, line)

    def command(self, text: str, variables: Variables, line: int) -> Effect:
        """What a command in backticks is."""
        effect = commands.in_backticks(self._text(text, variables), line)
        self.last_status = effect.status
        return effect

    def _text(self, text: str, variables: Variables) -> Value:
        return values.substituted(text, lambda name: self.variable(name, variables))

    def _value(self, expression: Expression, variables: Variables, line: int) -> Value:
        match expression:
            case Text(parts):
                found: list[Any] = []
                for quote, text in parts:
                    if quote == "'":
                        found.append(text)
                    elif quote == "`":
                        found += self.command(text, variables, line).value
                    else:
                        found += self._text(text, variables)
                return values.plain(tuple(found))
            case Call(function, arguments):
                return self._call(function, [self._value(one, variables, line) for one in arguments])
            case Operation(operator, left, right) if operator in _ARITHMETIC:
                one, other = (known(self._value(side, variables, line)) for side in (left, right))
                if one is None or other is None:
                    raise CannotSay("it reckons with what only a message brings")
                return (_ARITHMETIC[operator](values.number(one), values.number(other)),)
        found_formula, _ = self.formula(expression, variables, line)
        if found_formula in (TRUE, FALSE):
            return ("1" if found_formula == TRUE else "0",)
        if reasons := unknowns(found_formula):
            raise CannotSay(reasons[0].reason)
        raise CannotSay("it keeps whether something is so in a variable")

    def _call(self, function: str, arguments: list[Value]) -> Value:
        first = arguments[0] if arguments else EMPTY
        text = known(first)
        if function in ("tolower", "toupper"):
            return tuple(_small(part, function) for part in first)
        if function == "getaddr" and len(first) == 1 and isinstance(first[0], Captured):
            return (Captured(first[0].capture, "addresses"),)
        if function == "length" and text is not None:
            return (str(len(text)),)
        if function == "substr" and all(known(one) is not None for one in arguments):
            start = int(values.number(known(arguments[1]) or ""))
            count = int(values.number(known(arguments[2]) or "")) if arguments[2:] else None
            return ((text or "")[start:][:count],)
        raise CannotSay(values.mystery(first) or f"{function}() works on what only a message brings")

    # --- conditions ----------------------------------------------------------------------------------------------

    def formula(self, expression: Expression, variables: Variables, line: int) -> tuple[Formula, dict[str, Value]]:
        """When an expression is true, and what MATCH, MATCH1, ... are then; never raises."""
        self._captures, self._unread = [], False
        formula = at_line(self._formula(expression, variables, line), line)
        found, self._captures = self._captures, []
        if self._unread:
            return formula, dict.fromkeys(_MATCHES, (Mystery("the pattern that sets it has no counterpart"),))
        if not found:
            return formula, {}
        last = found[-1]
        either = isinstance(expression, Operation) and expression.operator == "||" and len(found) > 1
        unsure: Value = (Mystery("several patterns may have set it"),)
        said: dict[str, Value] = {
            f"MATCH{number}": unsure if either else (Captured(capture),) for number, capture in last.items()
        }
        return formula, {"MATCH": (Mystery("it is the whole line that a pattern found"),), **said}

    def _formula(self, expression: Expression, variables: Variables, line: int) -> Formula:
        try:
            return self._true(expression, variables, line)
        except CannotSay as error:
            self._unread = self._unread or isinstance(expression, Pattern)
            return unknown(str(error), line)

    def _true(self, expression: Expression, variables: Variables, line: int) -> Formula:
        match expression:
            case Pattern(text, options):
                return self._pattern(text, options, variables, line)
            case Operation("||" | "&&" as operator, left, right):
                sides = [self._formula(side, variables, line) for side in (left, right)]
                return any_of(sides) if operator == "||" else all_of(sides)
            case Operation("=~", left, Pattern(text, options)):
                value = self._value(left, variables, line)
                self._unread = self._unread or "(" in text
                return values.matches(value, self._filled(text, variables), options)
            case Operation(operator, left, right) if operator in _COMPARISONS:
                return values.compare(operator, *(self._value(side, variables, line) for side in (left, right)))
            case Operation("=", _, _):
                raise CannotSay("it sets a variable within a condition")
            case Operation("|" | "&", _, _):
                raise CannotSay("it reckons with bits")
            case Call("!", (inner,)):
                return negated(self._formula(inner, variables, line))
            case Call("hasaddr", (inner,)):
                address = known(self._value(inner, variables, line))
                if not address:
                    raise CannotSay("the address is known only when a message comes")
                return values.hasaddr(address)
            case Call("lookup", _):
                raise CannotSay("lookup() reads patterns from a file; addresses can stand in one of [lists]")
        return values.truth(self._value(expression, variables, line))

    def _pattern(self, text: str, options: str, variables: Variables, line: int) -> Formula:
        filled = self._filled(text, variables)
        if re.search(r"(?<!\\)!", re.sub(r"\[[^\]]*\]", "", filled)):
            if self.old:
                raise CannotSay("a pattern of maildrop 1: write its sections, which ! parts, in brackets")
            self.notes.append((line, "since maildrop 2 a ! in a pattern is just a !, and so it is in this rule"))
        found = in_message(filled, options)
        for leaf in leaves(found.formula):
            fields = {name.lower() for name in (leaf.value if leaf.key == "header" else (leaf.key,))} & self.changed
            if fields:
                raise CannotSay(f"it looks for {', '.join(sorted(fields))}, which the filter itself has written above")
        if found.doubt:
            self.notes.append((line, found.doubt))
        if found.captures:
            self._captures.append(found.captures)
        return found.formula

    def _filled(self, text: str, variables: Variables) -> str:
        """The pattern with its variables; a dollar before anything but a name is an anchor."""

        def value(found: "re.Match[str]") -> str:
            name = found[1] or found[2]
            if name is None:
                return found[0]
            worth = self.variable(name, variables)
            said = known(worth)
            if said is None:
                raise CannotSay(values.mystery(worth) or f"the pattern has ${name} in it, which only a message brings")
            return said

        return _IN_PATTERN.sub(value, text)


_PREDEFINED: dict[str, Value] = {
    "HOME": (Home(),),
    "DEFAULT": (Mailbox(),),
    "MAILDIR": (Mailbox(),),
    "SIZE": (Size(),),
    "FROM": (Imported("FROM"),),
    "SENDMAIL": ("sendmail",),
    "RETURNCODE": ("0",),
}

_ARITHMETIC = {
    "+": lambda one, other: f"{one + other:g}",
    "-": lambda one, other: f"{one - other:g}",
    "*": lambda one, other: f"{one * other:g}",
    "/": lambda one, other: f"{one / other:g}" if other else "0",
}


def _small(part: Any, function: str) -> Any:
    if isinstance(part, str):
        return part.lower() if function == "tolower" else part.upper()
    if isinstance(part, Captured):
        return Captured(part.capture, part.what, function == "tolower")
    return part


# --- which variables matter --------------------------------------------------------------------------------------


def assigned(statement: Statement) -> Iterator[str]:
    """The names of the variables that are set somewhere in a statement."""
    for one in (one for inner in statements(statement) for one in _expressions(inner)):
        if isinstance(one, Operation) and one.operator == "=" and isinstance(one.left, Text):
            yield one.left.parts[0][1]


def _last_uses(block: Statement) -> dict[str, int]:
    """The last line in which a variable is asked for; log lines do not count."""
    found: dict[str, int] = {}
    for statement in statements(block):
        if getattr(statement, "word", "") in ("log", "logfile", "echo"):
            continue
        for name in (name for one in _expressions(statement) for name in _names(one)):
            found[name] = max(found.get(name, 0), statement.end)
    return found


def statements(statement: Statement) -> Iterator[Statement]:
    """A statement and all in it."""
    yield statement
    body = getattr(statement, "body", ())
    inside = body if isinstance(body, tuple) else (body,)
    for one in (*inside, getattr(statement, "then", None), getattr(statement, "otherwise", None)):
        if one is not None:
            yield from statements(one)


def _expressions(statement: Statement) -> Iterator[Expression]:
    found = (getattr(statement, name, None) for name in ("condition", "over", "argument", "value", "target"))
    yield from (one for one in found if one is not None)


def _names(expression: Expression) -> Iterator[str]:
    match expression:
        case Text(parts):
            for quote, text in parts:
                if quote != "'":
                    yield from _VARIABLE.findall(text)
        case Pattern(text, _):
            yield from _VARIABLE.findall(text)
        case Operation(_, left, right):
            yield from _names(left)
            yield from _names(right)
        case Call(_, arguments):
            for one in arguments:
                yield from _names(one)
