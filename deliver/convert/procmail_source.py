"""A procmail rc file as its recipes and assignments, each with its line and the comments before it (procmailrc(5))."""

import re
from collections.abc import Callable
from typing import NamedTuple

from deliver.convert.model import Wrong

DEEPEST = 50
"""Blocks in each other: far more than anybody writes, and few enough for Python."""


class Condition(NamedTuple):
    """One condition line, without its "*" and joined with its continuations."""

    line: int
    text: str


class Assignment(NamedTuple):
    """``NAME=value``: the value as it is written, with quotes; None where the variable is unset."""

    line: int
    source: str
    comments: tuple[str, ...]
    name: str
    value: str | None


class Recipe(NamedTuple):
    """One recipe. ``action`` is its action line, "" where a ``block`` stands for it; ``inner`` are the comments at the
    end of the block.
    """

    line: int
    source: str
    comments: tuple[str, ...]
    flags: str
    conditions: tuple[Condition, ...]
    action: str
    block: "tuple[Item, ...] | None" = None
    inner: tuple[str, ...] = ()


class Foreign(NamedTuple):
    """A line that procmail passes over with a complaint in its log."""

    line: int
    source: str
    comments: tuple[str, ...]


Item = Assignment | Recipe | Foreign

_START = re.compile(r":[ \t]*([0-9]*)[ \t]*([A-Za-z \t]*)(:[^\n#]*)?[ \t]*(?:#[^\n]*)?(?=\n|\Z)")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*(=)?[ \t]*")
_REST = re.compile(r"(?:\\\n|[^\n])*")


def read(text: str) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items of a file, and the comments behind the last. Raises Wrong."""
    reader = _Reader(text.replace("\r\n", "\n"))
    items, comments = reader.items(0)
    return items, comments


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

    def _blanks(self, comments: list[str]) -> None:
        """Pass over blanks, ends of lines and comments."""
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                comments.append(self._text[self._at + 1 : end].strip())
                self._at = end
            elif self._text[self._at].isspace():
                self._at += 1
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
            else:
                return

    def items(self, depth: int) -> tuple[tuple[Item, ...], tuple[str, ...]]:
        """Items up to a "}" or the end, and the comments behind them."""
        if depth > DEEPEST:
            raise Wrong(self._line(self._at), f"blocks lie in each other more than {DEEPEST} deep")
        items: list[Item] = []
        comments: list[str] = []
        while True:
            self._blanks(comments)
            if self._at >= len(self._text) or (depth and self._text[self._at] == "}"):
                return tuple(items), tuple(comments)
            items.append(self._item(tuple(comments), depth))
            comments = []

    def _item(self, comments: tuple[str, ...], depth: int) -> Item:
        start = self._at
        if self._text[start] == ":":
            return self._recipe(comments, depth)
        found = _NAME.match(self._text, start)
        if not found or (not found[2] and not re.match(r"\s|\Z", self._text[found.end(1) : found.end(1) + 1])):
            rest = self._rest()
            return Foreign(self._line(start), rest, comments)
        self._at = found.end() if found[2] else found.end(1)
        value = self._word() if found[2] else None
        return Assignment(self._line(start), self._text[start : self._at], comments, found[1], value)

    def _rest(self) -> str:
        """Up to the end of the line, with its continuations."""
        start, found = self._at, _REST.match(self._text, self._at)
        self._at = found.end() if found else start  # it matches even nothing
        return self._text[start : self._at].rstrip()

    def _word(self) -> str:
        """A word as sh(1) has it, with its quotes."""
        start = self._at
        while self._at < len(self._text) and not self._text[self._at].isspace():
            char = self._text[self._at]
            if char == "\\":
                self._at += 2
            elif char in "\"'`":
                self._at = self._quoted(char)
            else:
                self._at += 1
        self._at = min(self._at, len(self._text))
        return self._text[start : self._at]

    def _quoted(self, quote: str) -> int:
        at = self._at + 1
        while at < len(self._text) and self._text[at] != quote:
            at += 2 if self._text[at] == "\\" and quote != "'" else 1
        if at >= len(self._text):
            raise Wrong(self._line(self._at), f"a {quote} is never closed")
        return at + 1

    def _recipe(self, comments: tuple[str, ...], depth: int) -> Item:
        start, line = self._at, self._line(self._at)
        found = _START.match(self._text, start)
        if not found:
            self._rest()
            raise Wrong(line, 'expected a recipe such as ":0 c:"')
        self._at = found.end()
        said = list(comments)
        conditions: list[Condition] = []
        counted = int(found[1] or "1")  # of long ago: as many lines are conditions, without a "*"
        while True:
            self._blanks(said)
            if self._at >= len(self._text):
                raise Wrong(line, "the recipe has no action line")
            star = self._text[self._at] == "*"
            if not star and len(conditions) >= counted:
                break
            here = self._at
            self._at += star
            text = re.sub(r"\\\n[ \t]*", "", self._rest())
            conditions.append(Condition(self._line(here), text.strip()))
        flags = re.sub(r"\s", "", found[2])
        if re.match(r"\{(?=\s|\Z)", self._text[self._at : self._at + 2]):
            self._at += 1
            block, inner = self.items(depth + 1)
            if self._at >= len(self._text):
                raise Wrong(line, 'the block of this recipe is never closed: expected a "}"')
            self._at += 1
            return Recipe(line, self._text[start : self._at], tuple(said), flags, tuple(conditions), "", block, inner)
        action = self._rest() if self._text[self._at] in "!|" or self._captures() else self._folders()
        source = self._text[start : self._at].rstrip()
        return Recipe(line, source, tuple(said), flags, tuple(conditions), action)

    def _captures(self) -> bool:
        return bool(re.match(r"[A-Za-z_][A-Za-z0-9_]*=[ \t]*\|", self._text[self._at : self._at + 200]))

    def _folders(self) -> str:
        """The names on an action line, up to a comment."""
        start = end = self._at
        while self._at < len(self._text) and self._text[self._at] != "\n":
            if self._text[self._at] in " \t":
                self._at += 1
            elif self._text[self._at] == "#":
                self._rest()
            else:
                self._word()
                end = self._at
        return self._text[start:end]


# --- words -------------------------------------------------------------------------------------------------------

_VARIABLE = re.compile(
    r"\$(?:(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<how>:?[-+])(?P<other>[^}]*))?\})"
)

Lookup = Callable[[str], str | None]
"""The value of a variable, None where only a delivery gives it."""


def expanded(word: str, lookup: Lookup, said: Lookup = lambda _command: None) -> str | None:
    """What a word stands for, without its quotes; None where only a delivery can tell.

    ``said`` is what a command between back quotes prints.
    """
    parts: list[str] = []
    at, quote = 0, ""
    while at < len(word):
        char = word[at]
        if quote != "'" and char == "`":
            end = word.find("`", at + 1)
            printed = said(word[at + 1 : end]) if end > 0 else None
            if printed is None:
                return None
            parts.append(printed)
            at = end + 1
            continue
        if char == quote:
            quote, at = "", at + 1
        elif not quote and char in "\"'":
            quote, at = char, at + 1
        elif char == "\\" and quote != "'":
            after = word[at + 1 : at + 2]
            parts.append(("" if after == "\n" else after) if not quote or after in '"\\$`\n' else f"\\{after}")
            at += 2
        elif char == "$" and quote != "'":
            found = _VARIABLE.match(word, at)
            if not found and not re.match(r"\$[\w{#?$*@\\=-]", word[at : at + 2]):
                parts.append(char)
                at += 1
                continue
            if not found:
                return None  # $1, $#, $\NAME, $=: nobody knows before a message comes
            value = _of(found, lookup)
            if value is None:
                return None
            parts.append(value)
            at = found.end()
        else:
            parts.append(char)
            at += 1
    return "".join(parts)


def _of(found: re.Match[str], lookup: Lookup) -> str | None:
    value = lookup(found["plain"] or found["braced"])
    if not found["how"]:
        return value
    if value is None:
        return None
    filled = bool(value)  # a variable that is not set is empty here
    if found["how"].endswith("-"):
        return value if filled else expanded(found["other"], lookup)
    return expanded(found["other"], lookup) if filled else ""


def words(text: str) -> list[str]:
    """A line parted into its words, with their quotes. A quote that is not closed ends with the line."""
    return re.findall(r"(?:\\.|\"(?:\\.|[^\"\\])*\"|'[^']*'|`[^`]*`|[^\s\\])+", text, re.DOTALL)
