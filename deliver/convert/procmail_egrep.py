"""The expressions of procmail's own egrep (procmailrc(5), Extended regular expressions), as a tree."""

from dataclasses import dataclass

from deliver.convert import patterns
from deliver.convert.patterns import Untranslatable


@dataclass(frozen=True)
class Char:
    """One character, as itself."""

    char: str


@dataclass(frozen=True)
class Set:
    """One of a bracket expression's characters; ``source`` is that expression in RE2's words. "." is one as well."""

    source: str


@dataclass(frozen=True)
class Repeated:
    """A node with "*", "+" or "?" behind it."""

    node: "Node"
    sign: str


@dataclass(frozen=True)
class Group:
    """Alternatives, each a row of nodes."""

    ways: "tuple[Row, ...]"


@dataclass(frozen=True)
class Edge:
    """The beginning or end of a line (^, $), of all (^^), or of a word (<, >)."""

    sign: str


Node = Char | Set | Repeated | Group | Edge
Row = tuple[Node, ...]

DOT = Set(".")
ANYTHING = Repeated(DOT, "*")


def parse(pattern: str) -> tuple[Row, ...]:
    """The alternatives of an expression. Raises Untranslatable."""
    ways, at = _alternatives(pattern, 0, 0)
    if at < len(pattern):
        raise Untranslatable('there is a ")" that closes nothing')
    return ways


def _alternatives(pattern: str, at: int, depth: int) -> tuple[tuple[Row, ...], int]:
    if depth > 40:
        raise Untranslatable("its groups lie too deep in each other")
    ways: list[Row] = []
    row: list[Node] = []
    while at < len(pattern):
        char = pattern[at]
        if char == ")" and depth:
            break
        if char == "|":
            ways.append(tuple(row))
            row = []
            at += 1
            continue
        node, at = _node(pattern, at, depth)
        while at < len(pattern) and pattern[at] in "*+?":
            node = _repeated(node, pattern[at])
            at += 1
        row.append(node)
    return (*ways, tuple(row)), at


def _repeated(node: Node, sign: str) -> Node:
    if isinstance(node, Repeated):  # procmail 3.22 finds something else by ".?*" than egrep does
        raise Untranslatable(f'"{node.sign}{sign}": one sign of repetition is enough')
    return Repeated(node, sign)


def _node(pattern: str, at: int, depth: int) -> tuple[Node, int]:
    char = pattern[at]
    match char:
        case "(":
            ways, end = _alternatives(pattern, at + 1, depth + 1)
            if end >= len(pattern):
                raise Untranslatable('there is a "(" that nothing closes')
            return Group(ways), end + 1
        case "[":
            source, end = patterns.bracket(pattern, at)
            return Set(source), end
        case ".":
            return DOT, at + 1
        case "^":
            return (Edge("^^"), at + 2) if pattern.startswith("^^", at) else (Edge("^"), at + 1)
        case "$":
            return Edge("$"), at + 1
        case "\\":
            after = pattern[at + 1 : at + 2]
            if after == "/":
                raise Untranslatable(r"\/ takes a part of the message for $MATCH, which rules do not have")
            if after in {"<", ">"} and after:
                return Edge(after), at + 2
            return Char(after or "\\"), at + 2
        case _:
            return Char(char), at + 1
