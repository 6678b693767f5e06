"""Perl's patterns (pcrepattern(3)) read into pieces, and written as our globs or as RE2's expressions."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from deliver.convert.patterns import glob_as_regex

MOST_GLOBS = 12
"""Values that alternatives are written out as; more stay one regular expression."""

DEEPEST = 30
"""Brackets of a pattern in each other."""


class CannotSay(Exception):
    """No condition of ours is this pattern; the words say why."""


class Piece(NamedTuple):
    r"""One atom of a pattern with its quantifier.

    Its kind is "char" (``text`` is the character), "any", "set", "class" (an escape such as \d), "anchor" (with
    ``text``), or "group" with its alternatives and its number (0: captures nothing).
    """

    kind: str
    text: str
    many: str = ""
    alternatives: tuple[tuple["Piece", ...], ...] = ()
    number: int = 0


Pieces = tuple[Piece, ...]

_MANY = re.compile(r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})[?+]?")
_SET = re.compile(r"\[\^?\]?(?:\[:\^?[a-z]+:\]|\\.|[^\]\\])*\]")
_OPENING = re.compile(r"\((?:\?(?::|[a-zA-Z]+\)|[^)]))?")


class Reader:
    """Reads one pattern."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._groups = 0
        self._depth = 0

    def all(self) -> tuple[Pieces, ...]:
        """Its alternatives. Raises CannotSay for what RE2 lacks."""
        found = self._alternatives()
        if self._at < len(self._text):
            raise CannotSay("the pattern has a ) without a (")
        return found

    def _alternatives(self) -> tuple[Pieces, ...]:
        found: list[list[Piece]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                self._at += 1
                found.append([])
            else:
                found[-1].append(self._piece())
        return tuple(map(tuple, found))

    def _piece(self) -> Piece:
        atom = self._atom()
        many = _MANY.match(self._text, self._at)
        if many and atom.kind != "anchor":
            self._at = many.end()
            if many[0].endswith("+") and len(many[0]) > 1:
                raise CannotSay("RE2 has no possessive quantifiers")
            return atom._replace(many=many[0])
        return atom

    def _atom(self) -> Piece:
        text, start = self._text, self._at
        char = text[start]
        self._at += 1
        if char == "(":
            return self._group(start)
        if char == "[":
            found = _SET.match(text, start)
            if not found:
                raise CannotSay("the pattern has a [ without a ]")
            self._at = found.end()
            return Piece("set", found[0])
        if char == "\\":
            escaped = text[self._at : self._at + 1]
            self._at += 1
            if escaped in "bBAzZ" and escaped:
                return Piece("anchor", {"A": "^", "z": "$", "Z": "$"}.get(escaped, f"\\{escaped}"))
            if escaped in "tnrf" and escaped:
                return Piece("class", f"\\{escaped}")
            if escaped == "h":
                return Piece("set", r"[ \t]")
            if escaped.isalnum():
                if escaped not in "dDsSwW":
                    raise CannotSay(f"RE2 has no \\{escaped}, or it means something else there")
                return Piece("class", f"\\{escaped}")
            return Piece("char", escaped)
        if char in "^$":
            return Piece("anchor", char)
        return Piece("any", ".") if char == "." else Piece("char", char)

    def _group(self, start: int) -> Piece:
        opening = _OPENING.match(self._text, start)
        opened = opening[0] if opening else "("
        if opened not in ("(", "(?:"):
            raise CannotSay("RE2 has no lookahead, lookbehind or atomic groups, and options in a pattern are undefined")
        number = 0
        if opened == "(":
            self._groups += 1
            number = self._groups
        self._at = start + len(opened)
        self._depth += 1
        if self._depth > DEEPEST:
            raise CannotSay(f"brackets in the pattern lie in each other more than {DEEPEST} deep")
        alternatives = self._alternatives()
        self._depth -= 1
        if self._text[self._at : self._at + 1] != ")":
            raise CannotSay("the pattern has a ( without a )")
        self._at += 1
        return Piece("group", "", "", alternatives, number)


def written(pieces: Pieces) -> str:
    """The regular expression of these pieces."""
    return "".join(_atom(piece) + piece.many for piece in pieces)


def _atom(piece: Piece) -> str:
    if piece.kind == "char":
        return re.sub(r"[\\.*+?^$|(){}\[\]]", r"\\\g<0>", piece.text)
    if piece.kind == "group":
        return f"({'|'.join(map(written, piece.alternatives))})"
    return piece.text


def groups_of(pieces: Pieces) -> Iterator[Piece]:
    """The groups, those in others among them."""
    for piece in pieces:
        if piece.kind == "group":
            yield piece
            for inner in piece.alternatives:
                yield from groups_of(inner)


def takes_blank(piece: Piece) -> bool:
    """Whether it is a blank, or what stands for blanks."""
    return (piece.kind == "char" and piece.text == " ") or (
        piece.kind in ("set", "class") and piece.text in (r"\s", "[ ]", r"[ \t]", r"[\t ]", r"[\s]", "[[:space:]]")
    )


def ended(pieces: Pieces) -> tuple[Pieces, bool]:
    """Without what says nothing at the end, and whether it must end where the value ends."""
    end = bool(pieces) and pieces[-1].kind == "anchor" and pieces[-1].text == "$"
    left = pieces[:-1] if end else pieces
    if end and left and takes_blank(left[-1]) and left[-1].many.startswith("*"):
        left = left[:-1]  # values end without blanks
    if left and left[-1].kind == "any" and left[-1].many.startswith("*"):
        return ended(left[:-1])[0] if not end else left[:-1], False
    return left, end


STARRED = r"(?<!\\)\*{2,}"
"""Stars of globs that say no more than one; the first is not an escaped one."""

# --- globs and regular expressions -------------------------------------------------------------------------------


def texts_of(pieces: Pieces) -> list[str] | None:
    """The globs that these pieces are, None where they are none, or too many."""
    found = [""]
    for index, piece in enumerate(pieces):
        options = _glob_of(piece, pieces, index)
        if options is None or len(found) * len(options) > MOST_GLOBS:
            return None
        found = [before + option for before in found for option in options]
    return found


def _glob_of(piece: Piece, pieces: Pieces, index: int) -> list[str] | None:
    optional = [""] if piece.many == "?" else []
    if piece.kind == "char" and piece.many in ("", "?"):
        return [re.sub(r"[*?\\]", r"\\\g<0>", piece.text), *optional]
    if piece.kind == "any" and piece.many in ("*", "*?"):
        return ["*"]
    if piece.kind == "any" and piece.many in ("+", "+?"):
        return ["?*"]
    if piece.kind == "any" and not piece.many:
        return ["." if _in_domain(pieces, index) else "?"]
    if piece.kind == "set" and not piece.many and (single := re.fullmatch(r"\[([^\\^\]])\]", piece.text)):
        return [re.sub(r"[*?\\]", r"\\\g<0>", single[1])]
    if piece.kind == "group" and piece.many in ("", "?"):
        inner = [texts_of(alternative) for alternative in piece.alternatives]
        known = [texts for texts in inner if texts is not None]
        return [text for texts in known for text in texts] + optional if len(known) == len(inner) else None
    return None


def _in_domain(pieces: Pieces, index: int) -> bool:
    r"""Whether a dot there parts a domain's labels: it is meant as one, however few people write "\."."""
    around = pieces[max(index - 1, 0) : index + 2]
    if len(around) < 3 or not all(one.text.isalnum() and not one.many for one in (around[0], around[2])):
        return False
    before = "".join(one.text if not one.many else " " for one in pieces[:index])
    return re.search(r"[@<][A-Za-z0-9_.-]*$", before) is not None


def tested(begins: bool, pieces: Pieces, case: bool, *, address: bool) -> Any:
    """The text test: a glob, an array of them, or a regular expression."""
    core, ends = ended(pieces)
    globs = None if case else texts_of(core)
    quoted = address and any(one.text == " " for one in core) and any(one.text == "<" for one in core)
    named = address and begins and bool(core) and core[0].text.isalnum() and "@" not in [one.text for one in core]
    if globs is not None and not quoted and not named:
        before = "" if begins else "*"
        whole = [f"{before}{one}{'' if ends else '*'}" for one in globs]
        whole = [_named(one, "*", "*?") if address else one for one in whole]
        if address and (begins or ends):
            # Where an address stands alone in <>, maildrop takes these away.
            whole += [f"<{before}{one}{'>' if ends else '*'}" for one in globs if not re.search(r'[<>]|^"', one)]
        made = [re.sub(STARRED, "*", one) for one in whole]
        made = ["*"] if "*" in made else list(dict.fromkeys(made))
        return made[0] if len(made) == 1 else made
    if not core and not case:
        return "" if begins and ends else "*"
    text = written(core)
    if named and globs is not None and len(globs) == 1 and not re.search(r"(?<!\\)[*?]", globs[0]):
        return {"regex": f"^{_display_name(text)}{'$' if ends else ''}"}
    if address:
        text = re.sub(r" <", '"? *<', text)
        text = _named(text if begins else f".*{text}", ".*", ".*[^, ] *").removeprefix(".*")
        text = f'["<]?{text}' if begins else text
    if "|" in text and (begins or ends):
        text = f"(?:{text})"
    bare = f"^<[^<>]*{text}>$" if address and ends and not begins and "<" not in text else ""
    said = f"{'^' if begins else ''}{text}{'>?' if address and begins and ends else ''}{'$' if ends else ''}"
    return {"regex": f"{'(?-i)' if case else ''}{said}{f'|{bare}' if bare else ''}"}


def _named(text: str, anything: str, name: str) -> str:
    """The pattern with ``name`` in place of ``anything`` before a "<". maildrop takes a <> without a name away."""
    if text.startswith("<"):
        raise CannotSay("maildrop, since 2.7.1, takes away the <> of an address that has no name before it")
    return f"{name}{text.removeprefix(anything)}" if text.startswith(f"{anything}<") else text


def _display_name(text: str) -> str:
    """The expression for what maildrop has at the beginning of an address field; ``text`` is an expression for a word.

    It removes the quotes of names that need none (RFC 5322 section 3.2.3), where our value still has them.
    """
    name, bracket, address = text.partition(" <")
    if bracket:
        return f'(?:{name}|"{name}") *<{address}'
    return rf'(?:<?{name}|"{name}[^"@.,:;<>()\[\]\\]*")'


def is_in(text: str, pattern: str, options: str) -> bool:
    """Whether a text that is known has the pattern. Raises CannotSay for all but words, alternatives and stars.

    Python's own patterns may take for ever, and whoever wrote the filter is not whoever converts it.
    """
    tests = text_test(pattern, options)
    globs = [one for test in tests for one in (test if isinstance(test, list) else [test])]
    if not all(isinstance(one, str) for one in globs):
        raise CannotSay("the pattern is not simple enough to be tried now")
    return any(re.match(glob_as_regex(one), text, re.IGNORECASE) for one in globs)


def text_test(pattern: str, options: str) -> list[Any]:
    """Tests, of which any must pass, for a text by itself that a pattern is searched for in."""
    found = []
    for pieces in Reader(pattern).all():
        begins = bool(pieces) and pieces[0].kind == "anchor" and pieces[0].text == "^"
        found.append(tested(begins, pieces[1:] if begins else pieces, "D" in options, address=False))
    return found
