"""The words of maildrop's filtering language (maildropfilter(7), Lexical structure and Literal text)."""

import re
from typing import NamedTuple

from deliver.convert.model import Wrong


class Token(NamedTuple):
    """``kind`` is "string", "pattern", "end" of a line, "" at the end of the file, or the word or sign itself.

    ``quote`` is a string's, or a pattern's options.
    """

    kind: str
    text: str
    line: int
    quote: str = ""


_SIGNS = ("&&", "||", "<=", ">=", "==", "=~", "!=", *"&|{}();+*~<>=!,")
_BARE = re.compile(r"[A-Za-z0-9_@.:/$-][A-Za-z0-9_@.:/${}-]*")
_OPTIONS = re.compile(r":[A-Za-z0-9+.,-]*")
_WORDS = frozenset(
    "lt le gt ge eq ne to cc length substr if elsif else while exception echo xfilter system dotlock flock logfile log "
    "include exit foreach getaddr lookup escape tolower toupper hasaddr gdbmopen gdbmclose gdbmfetch gdbmstore time "
    "import unset".split()
)
_CONTINUED = re.compile(r"\\[ \t\r\f\v]*(?:#[^\n]*)?\n\s*")


class Lexer:
    """Reads a file; ``comments`` are those met so far, each with its line."""

    def __init__(self, text: str) -> None:
        self._text = text.removeprefix("\ufeff")
        self._at = 0
        self._line = 1
        self.comments: list[tuple[int, str]] = []

    def tokens(self) -> list[Token]:
        """All words, with an "end" behind each line. Raises Wrong."""
        found: list[Token] = []
        while True:
            token = self._next(found[-1].kind if found else "end")
            found.append(token)
            if not token.kind:
                if len(found) > 1 and found[-2].kind != "end":
                    found.insert(-1, Token("end", "", token.line))
                return found

    def _next(self, last: str) -> Token:
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char == "\n":
                self._at += 1
                self._line += 1
                return Token("end", "", self._line - 1)
            if char.isspace():
                self._at += 1
            elif char == "#":
                stop = text.find("\n", self._at)
                stop = len(text) if stop < 0 else stop
                self.comments.append((self._line, text[self._at + 1 : stop].rstrip()))
                self._at = stop
            elif char == "\\":
                found = re.compile(r"\\(?=\s)[^\n]*\n").match(text, self._at)
                if not found:
                    raise Wrong(self._line, "a backslash outside of quotes only continues a line, at its very end")
                self._at = found.end()
                self._line += 1
            else:
                return self._word(char, last)
        return Token("", "", self._line)

    def _word(self, char: str, last: str) -> Token:
        line = self._line
        if char in "\"'`":
            return Token("string", self._quoted(char), line, char)
        # Behind "=", `to` and `cc` a slash begins a path (Literal text, last paragraphs).
        if char == "/" and last not in ("=", "to", "cc"):
            return self._pattern(line)
        if found := _BARE.match(self._text, self._at):
            self._at = found.end()
            word = found[0]
            if word == "-":
                return Token("-", "", line)
            return Token(word if word in _WORDS else "string", word, line)
        for sign in _SIGNS:
            if self._text.startswith(sign, self._at):
                self._at += len(sign)
                return Token("end" if sign == ";" else sign, sign, line)
        raise Wrong(line, f"{char!r} means nothing here; put text into quotes")

    def _quoted(self, quote: str) -> str:
        """What is in quotes: a backslash before the quote or a backslash goes, any other stays."""
        start, self._at, pieces = self._line, self._at + 1, []
        while (char := self._text[self._at : self._at + 1]) != quote:
            if char in ("", "\n"):
                raise Wrong(start, f"the text that begins with {quote} has no end on its line")
            if char != "\\":
                pieces.append(char)
                self._at += 1
            elif found := _CONTINUED.match(self._text, self._at):
                self._line += found[0].count("\n")
                self._at = found.end()
            else:
                following = self._text[self._at + 1 : self._at + 2]
                pieces.append(following if following in (quote, "\\") else f"\\{following}")
                self._at += 2
        self._at += 1
        return "".join(pieces)

    def _pattern(self, line: int) -> Token:
        found = re.compile(r"/(?![\s])((?:\\[^\n]|[^\\/\n])*)/").match(self._text, self._at)
        if not found:
            if self._text[self._at + 1 : self._at + 2].isspace():
                self._at += 1
                return Token("/", "/", line)
            raise Wrong(line, "the pattern that begins with / has no second / on its line")
        self._at = found.end()
        options = _OPTIONS.match(self._text, self._at)
        self._at = options.end() if options else self._at
        return Token("pattern", found[1], line, options[0][1:] if options else "")
