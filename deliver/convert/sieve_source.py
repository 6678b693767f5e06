"""A Sieve script as its statements, each with its line and the comments before it (RFC 5228 sections 2 and 8).

sievelib's parser gives no lines, and stops at the first command that it does not know. So its lexer finds where the
statements are, and its parser reads each for itself.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sievelib.parser import Lexer, ParseError, Parser

from deliver.convert import sieve_grammar
from deliver.convert.model import Wrong
from deliver.convert.patterns import Untranslatable

DEEPEST = 100
"""Blocks in each other: far more than anybody writes, and few enough for Python."""


class Command(NamedTuple):
    """A command or test as it was written. ``tags`` have their own argument, or True; ``arguments`` go by their names.

    Values are strings, lists of strings and numbers, not yet expanded.
    """

    name: str
    tags: dict[str, Any]
    arguments: dict[str, Any]
    tests: tuple["Command", ...]


class Statement(NamedTuple):
    """One statement: ``words`` is what stands before its ";" or its block, ``source`` all of it with the block.

    ``block`` is None where there is none. ``comments`` stood before it, ``inner`` at the end of its block.
    """

    name: str
    line: int
    words: str
    source: str
    comments: tuple[str, ...]
    block: tuple["Statement", ...] | None = None
    inner: tuple[str, ...] = ()


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def read(text: str) -> tuple[tuple[Statement, ...], tuple[str, ...]]:
    """The statements of a script, and the comments behind the last of them. Raises Wrong."""
    source = text.encode("utf-8", "surrogateescape")
    reader = _Reader(source)
    statements, comments = reader.block(0)
    reader.finish()
    return statements, comments


def command(words: str) -> Command:
    """What an action says. Raises Untranslatable with sievelib's words where that cannot read it."""
    return _command(_parsed(f"{words}\n;")[1])  # a text: block ends with its line


def test(words: str) -> Command:
    """The test in the words of an if or elsif, which may end with a comment. Raises Untranslatable as ``command``."""
    return _command(_parsed(f"if {_complete(words)}\n{{ stop; }}")[1].arguments["test"])


def _complete(words: str) -> str:
    """The words with one argument more for `duplicate`: sievelib takes a test that needs none for ended at its name."""
    source = words.encode("utf-8", "surrogateescape")
    lexer = Lexer(Parser.lrules)
    pieces, at, inside = [], 0, False
    for kind, text in lexer.scan(source):
        if inside and kind not in {"tag", "number", "string", "hash_comment", "bracket_comment"}:
            pieces += [source[at : lexer.pos], b' "" ']
            at = lexer.pos
            inside = False
        inside = inside or (kind == "identifier" and text.lower() == b"duplicate")
    return b"".join([*pieces, source[at:], b'\n""' if inside else b""]).decode("utf-8", "surrogateescape")


def _parsed(words: str) -> list[Any]:
    parser = Parser()
    names = ", ".join(f'"{name}"' for name in sieve_grammar.EXTENSIONS)
    try:
        done = parser.parse(f"require [{names}];\n{words}".encode("utf-8", "surrogateescape"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Untranslatable(f"the parser cannot read it ({error})") from error
    if not done or len(parser.result) != 2:
        said = re.sub(r"^line \d+: (?:parsing error: )?", "", str(getattr(parser, "error", "")))
        raise Untranslatable(f"the parser does not know it: {said}" if said else "it is not one statement")
    result: list[Any] = parser.result
    return result


class _Reader:
    def __init__(self, source: bytes) -> None:
        self._source = source
        self._tokens = list(self._scan())
        self._at = 0

    def _scan(self) -> Iterator[_Token]:
        lexer = Lexer(Parser.lrules)
        try:
            for kind, text in lexer.scan(self._source):
                yield _Token(kind, text.decode("utf-8", "surrogateescape"), lexer.pos, lexer.pos + len(text))
        except ParseError as error:
            raise Wrong(lexer.curlineno(), f"this is no Sieve: {error.msg}") from error

    def _line(self, offset: int) -> int:
        return self._source.count(b"\n", 0, offset) + 1

    def _text(self, start: int, end: int) -> str:
        return self._source[start:end].decode("utf-8", "surrogateescape").strip()

    def _wrong(self, words: str) -> Wrong:
        here = self._tokens[self._at].start if self._at < len(self._tokens) else len(self._source)
        return Wrong(self._line(here), words)

    def finish(self) -> None:
        """Raises Wrong where anything is left."""
        if self._at < len(self._tokens):
            raise self._wrong('there is a "}" that closes nothing')

    def block(self, depth: int) -> tuple[tuple[Statement, ...], tuple[str, ...]]:
        """Statements up to a "}" or the end, and the comments behind them."""
        if depth > DEEPEST:
            raise self._wrong(f"blocks lie in each other more than {DEEPEST} deep")
        statements: list[Statement] = []
        comments: list[str] = []
        while self._at < len(self._tokens) and self._tokens[self._at].kind != "right_cbracket":
            if self._tokens[self._at].kind.endswith("_comment"):
                comments += _comment(self._tokens[self._at].text)
                self._at += 1
                continue
            statements.append(self._statement(tuple(comments), depth))
            comments = []
        return tuple(statements), tuple(comments)

    def _statement(self, comments: tuple[str, ...], depth: int) -> Statement:
        first = self._tokens[self._at]
        if first.kind != "identifier":
            raise self._wrong(f'expected a command, not "{first.text[:40]}"')
        line, inside = self._line(first.start), list(comments)
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind.endswith("_comment"):
                inside += _comment(token.text)
            if token.kind == "semicolon":
                self._at += 1
                words = self._text(first.start, token.start)
                source = self._text(first.start, token.end)
                return Statement(first.text.lower(), line, words, source, tuple(inside))
            if token.kind == "left_cbracket":
                words = self._text(first.start, token.start)
                self._at += 1
                block, inner = self.block(depth + 1)
                if self._at >= len(self._tokens):
                    raise Wrong(line, f'the block of this "{first.text}" is never closed: expected a "}}"')
                end = self._tokens[self._at].end
                self._at += 1
                source = self._text(first.start, end)
                return Statement(first.text.lower(), line, words, source, tuple(inside), block, inner)
            if token.kind == "right_cbracket":
                break
            self._at += 1
        raise Wrong(line, f'expected a ";" or a block behind "{first.text}"')


def _comment(text: str) -> list[str]:
    """The lines of a comment, without its signs."""
    if text.startswith("#"):
        return [text[1:].strip()]
    lines = [line.strip().removeprefix("*").strip() for line in text[2:-2].strip().splitlines()]
    return lines or [""]


# --- what sievelib read ------------------------------------------------------------------------------------------


def _command(parsed: Any) -> Command:
    tags: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    tests: list[Command] = []
    for known in parsed.args_definition:
        name = known["name"]
        if name not in parsed.arguments:
            continue
        value = parsed.arguments[name]
        if "tag" in known["type"]:
            tags[str(value).lower()] = _value(parsed.extra_arguments[name]) if name in parsed.extra_arguments else True
        elif set(known["type"]) <= {"test", "testlist"}:
            tests += [_command(one) for one in (value if isinstance(value, list) else [value])]
        else:
            arguments[name] = _value(value)
    return Command(parsed.name, tags, arguments, tuple(tests))


def _value(raw: Any) -> Any:
    """A string without its quotes, a list of them, or a number (RFC 5228 sections 2.4.1 and 2.4.2)."""
    if isinstance(raw, list):
        return [_value(one) for one in raw]
    text = str(raw)
    if text.startswith('"'):
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    if text[:5].lower() == "text:":
        lines = text.replace("\r\n", "\n").split("\n")[1:-1]
        return "".join(f"{line.removeprefix('.') if line.startswith('..') else line}\n" for line in lines)
    return _number(text)


def _number(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1].upper()] if text[-1].upper() in units else int(text)
