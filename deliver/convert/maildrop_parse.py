"""maildrop's filtering language, from text to statements (maildropfilter(7)).

The grammar is as strict as maildrop's own: the end of a line is a token, and braces and `else` stand where maildrop
wants them. A file that maildrop would refuse filters no mail, so it is refused here, too, with its line.
"""

from dataclasses import dataclass
from typing import NamedTuple

from deliver.convert.maildrop_lexer import Lexer, Token
from deliver.convert.model import Wrong

# --- what a file is made of --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Strings side by side, which make one. Each has its quote: ", ', ` (a command) or "" for a bare word."""

    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pattern:
    """/text/:options"""

    text: str
    options: str


@dataclass(frozen=True)
class Operation:
    """Two operands; the operators are maildrop's, "=" (assignment) and "=~" among them."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Call:
    """A function, or one of the prefixes "!" and "~"."""

    function: str
    arguments: tuple["Expression", ...]


Expression = Text | Pattern | Operation | Call


@dataclass(frozen=True)
class Statement:
    """One statement in the lines ``line`` to ``end``, counted from 1; nothing by itself, as an empty block is."""

    line: int
    end: int


@dataclass(frozen=True)
class Block(Statement):
    """{ ... }, and the file as a whole."""

    body: tuple[Statement, ...]


@dataclass(frozen=True)
class If(Statement):
    """if and elsif, with what stands in its `else`; ``head`` is the last line of the condition.

    An empty line behind that is all that the condition is for: the block below it is done for every message.
    """

    condition: Expression
    then: Statement
    otherwise: Statement | None
    head: int


@dataclass(frozen=True)
class Deliver(Statement):
    """`to` (final) and `cc`."""

    target: Expression
    final: bool


@dataclass(frozen=True)
class Command(Statement):
    """A word with at most one argument: log, logfile, echo, xfilter, system, include, import, unset, exit."""

    word: str
    argument: Expression | None


@dataclass(frozen=True)
class Loop(Statement):
    """while and foreach."""

    word: str
    over: Expression
    body: Statement


@dataclass(frozen=True)
class Guarded(Statement):
    """exception, dotlock and flock."""

    word: str
    body: Statement


@dataclass(frozen=True)
class Bare(Statement):
    """An expression that stands alone: an assignment, a command in backticks, a pattern that sets MATCH."""

    value: Expression


class Parsed(NamedTuple):
    """``comments`` are those of the file, each with its line, without "#"."""

    block: Block
    comments: tuple[tuple[int, str], ...]


# --- sentences ---------------------------------------------------------------------------------------------------

# From the loosest to the tightest; comparisons do not chain.
_LEVELS = (
    ("||",),
    ("&&",),
    ("<", "<=", ">", ">=", "==", "!=", "lt", "le", "gt", "ge", "eq", "ne"),
    ("|",),
    ("&",),
    ("+", "-"),
    ("*", "/"),
    ("=~",),
)
_COMPARISON = 2
_PREFIXES = ("!", "~", "length", "getaddr", "escape", "tolower", "toupper", "hasaddr")
_LISTS = ("substr", "lookup", "gdbmopen", "gdbmfetch", "gdbmstore")
_COMMANDS = ("log", "logfile", "echo", "xfilter", "system", "include", "import", "unset")

DEEPEST = 100
"""Blocks and brackets in each other; beyond that nobody wrote the file."""

LONGEST_CHAIN = 1000
"""Branches of one `if`."""


def parse(text: str) -> Parsed:
    """The statements of a filter file. Raises Wrong where maildrop would refuse it."""
    lexer = Lexer(text.replace("\r\n", "\n"))
    parser = _Parser(lexer.tokens())
    block = parser.statements(1)
    if parser.kind:
        raise Wrong(parser.line, "this } closes nothing")
    return Parsed(block, tuple(lexer.comments))


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._chain = 0

    @property
    def kind(self) -> str:
        return self._tokens[self._at].kind

    @property
    def line(self) -> int:
        return self._tokens[self._at].line

    def _take(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _end(self) -> int:
        """Pass the end of a statement; its line."""
        if self.kind != "end":
            shown = self._tokens[self._at].text or "the end of the file"
            raise Wrong(self.line, f"the statement should end before {shown!r}")
        return self._take().line

    def statements(self, line: int) -> Block:
        found = []
        while self.kind not in ("}", ""):
            if self.kind == "end":
                self._take()
            else:
                found.append(self._statement())
        return Block(line, self.line, tuple(found))

    def _statement(self) -> Statement:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Wrong(self.line, f"statements lie in each other more than {DEEPEST} deep")
        try:
            return self._one()
        finally:
            self._depth -= 1

    def _one(self) -> Statement:
        line, kind = self.line, self.kind
        if kind in ("if", "while"):
            return self._conditional(self._take())
        if kind in ("else", "elsif"):
            raise Wrong(line, f"{kind} stands on the line right behind a }}, with no empty line and no comment between")
        if kind == "{":
            return self._block()
        if kind == "foreach":
            self._take()
            over = self._expression()
            if not isinstance(over, Pattern) and not (isinstance(over, Operation) and over.operator == "=~"):
                raise Wrong(line, "foreach wants a pattern, or (text) =~ a pattern")
            self._end()
            body = self._statement()
            return Loop(line, body.end, "foreach", over, body)
        if kind in ("exception", "dotlock", "flock"):
            self._take()
            if kind != "exception":
                self._expression()
            if self.kind != "{":
                raise Wrong(line, f"{kind} wants a {{ on its own line")
            body = self._block()
            return Guarded(line, body.end, kind, body)
        self._at += kind in ("to", "cc", "exit", *_COMMANDS)
        if kind in ("to", "cc"):
            target = self._expression()
            return Deliver(line, self._end(), target, kind == "to")
        if kind == "exit":
            return Command(line, self._end(), "exit", None)
        value = self._expression()
        if kind in _COMMANDS:
            return Command(line, self._end(), kind, value)
        return Bare(line, self._end(), value)

    def _block(self) -> Block:
        opened = self._take().line
        block = self.statements(opened)
        if self.kind != "}":
            raise Wrong(opened, "this { has no }")
        closed = self._take().line
        if self.kind != "end":
            raise Wrong(self.line, "behind a } the line must end; `else` stands on the next one")
        self._take()
        return Block(opened, closed, block.body)

    def _conditional(self, word: Token) -> Statement:
        if self.kind != "(":
            raise Wrong(word.line, f"{word.kind} wants a condition in brackets")
        self._take()
        condition = self._expression()
        self._closing()
        head = self.line
        if self.kind != "end":
            raise Wrong(head, "behind the condition's ) the line must end; { stands on the next one")
        self._take()
        if self.kind == "end":
            self._take()
            then: Statement = Block(head, head, ())
        else:
            then = self._statement()
        if word.kind == "while":
            return Loop(word.line, then.end, "while", condition, then)
        otherwise = None
        if self.kind == "else":
            self._take()
            self._end()
            otherwise = self._statement()
        elif self.kind == "elsif":
            self._chain += 1
            if self._chain > LONGEST_CHAIN:
                raise Wrong(self.line, f"there are more than {LONGEST_CHAIN} branches")
            otherwise = self._conditional(self._take())
            self._chain -= 1
        return If(word.line, (otherwise or then).end, condition, then, otherwise, head)

    def _closing(self) -> None:
        if self.kind != ")":
            raise Wrong(self.line, "there is no ) for a (")
        self._take()

    def _expression(self) -> Expression:
        left = self._binary(0)
        while self.kind == "=":
            if not isinstance(left, Text):
                raise Wrong(self.line, "before = stands the name of a variable")
            self._take()
            left = Operation("=", left, self._binary(0))
        return left

    def _binary(self, level: int) -> Expression:
        if level == len(_LEVELS):
            return self._element()
        left = self._binary(level + 1)
        while self.kind in _LEVELS[level]:
            operator = self._take().kind
            if operator == "=~" and self.kind != "pattern":
                raise Wrong(self.line, "behind =~ stands a pattern: /.../")
            left = Operation(operator, left, self._binary(level + 1))
            if level == _COMPARISON:
                break
        return left

    def _element(self) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Wrong(self.line, f"brackets lie in each other more than {DEEPEST} deep")
        try:
            return self._simple()
        finally:
            self._depth -= 1

    def _simple(self) -> Expression:
        kind = self.kind
        if kind == "pattern":
            token = self._take()
            return Pattern(token.text, token.quote)
        if kind == "(":
            self._take()
            inner = self._expression()
            self._closing()
            return inner
        if kind in _PREFIXES:
            self._take()
            return Call(kind, (self._element(),))
        if kind in _LISTS:
            return self._call(self._take())
        if kind in ("time", "gdbmclose"):
            self._take()
            return Call(kind, ())
        parts = []
        while self.kind == "string":
            token = self._take()
            parts.append((token.quote, token.text))
        if not parts:
            shown = self._tokens[self._at].text or "the end of the line"
            raise Wrong(self.line, f"expected text, a variable or a pattern, not {shown!r}")
        return Text(tuple(parts))

    def _call(self, word: Token) -> Call:
        if self.kind != "(":
            raise Wrong(word.line, f"{word.kind} wants its arguments in brackets")
        self._take()
        arguments = [self._expression()]
        while self.kind == ",":
            self._take()
            arguments.append(self._expression())
        self._closing()
        return Call(word.kind, tuple(arguments))
