"""maildrop's patterns (pcrepattern(3), maildropfilter(7) Patterns) as conditions of ours: globs, else RE2.

maildrop searches the header line by line, each unfolded, decoded and written "Name: value" with one blank (`reformime
-u` shows it), in any case of letters. Ours look at the value alone.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from deliver.convert.formulas import TRUE, Formula, Leaf, all_of, any_of, negated
from deliver.convert.maildrop_logic import SPAM
from deliver.convert.maildrop_pcre import (
    STARRED,
    CannotSay,
    Piece,
    Pieces,
    Reader,
    ended,
    groups_of,
    takes_blank,
    tested,
    texts_of,
    written,
)
from deliver.convert.patterns import attached, just

ADDRESS_FIELDS = frozenset(
    "from to cc bcc reply-to sender errors-to resent-from resent-to resent-cc resent-sender resent-reply-to".split()
)
"""Fields that maildrop writes anew: without quotes, with one blank before "<"."""


class Capture(NamedTuple):
    """What a group of a pattern stands for: ``field`` in small letters, ``role`` what of its value.

    The role is "value" (all of it), "score" or "whole score" (SpamAssassin's points, without decimals), "list-id",
    "list-name", "detail" (behind the + of an address), or "" where nobody can tell.
    """

    field: str
    role: str


class Found(NamedTuple):
    """The condition, what its groups captured, and what is not quite as it was ("" for nothing)."""

    formula: Formula
    captures: dict[int, Capture]
    doubt: str = ""


# --- the name, and what stands behind it -------------------------------------------------------------------------

_MOST_NAMES = 32
_LONGEST_NAME = 76


def _heads(pieces: Pieces, name: str = "") -> Iterator[tuple[str, Pieces, bool]]:
    """Each field's name that the pattern begins with, what follows it, and whether there was a colon between."""
    if not pieces:
        raise CannotSay("it names no header field")
    first, rest = pieces[0], pieces[1:]
    if first.kind == "char" and first.text == ":" and not first.many and name:
        yield name, rest, True
    elif len(name) > _LONGEST_NAME:
        raise CannotSay("it names no header field")
    elif first.kind == "char" and not first.many and re.fullmatch(r"[A-Za-z0-9_-]", first.text):
        yield from _heads(rest, name + first.text)
    elif first.kind == "char" and first.many == "?":
        yield from _heads((first._replace(many=""), *rest), name)
        yield from _heads(rest, name)
    elif first.kind == "set" and not first.many and re.fullmatch(r"\[([A-Za-z])([A-Za-z])\]|\[.\]", first.text):
        letters = set(first.text[1:-1].lower())
        if len(letters) > 1:
            raise CannotSay("it looks at any header field, and ours look at fields by their names")
        yield from _heads((Piece("char", first.text[1]), *rest), name)
    elif first.kind == "group" and first.many in ("", "?"):
        for alternative in (*first.alternatives, *([()] if first.many else [])):
            inner = tuple(one for one in alternative if not (one.kind == "anchor" and one.text == "^" and not name))
            yield from _heads((*inner, *rest), name)
    elif first.kind == "any" and first.many in ("*", "+") and name:
        yield name, pieces, False
    else:
        raise CannotSay("it looks at any header field, and ours look at fields by their names")


def _value_of(pieces: Pieces) -> Iterator[tuple[bool, Pieces]]:
    """What of a pattern is left for the value itself, behind the one blank that maildrop writes before it.

    With it, whether it must begin where the value begins. Nothing at all where it can match no line.
    """
    blank = False  # whether the blank has been matched
    while pieces:
        first, rest = pieces[0], pieces[1:]
        some = first.many in ("", "+", "+?", "{1,}")
        if takes_blank(first):
            if some and blank:
                return
            blank, pieces = True, rest
        elif first.kind == "any" and not blank:
            if first.many in ("", "?"):
                blank, pieces = True, rest
            else:
                yield False, rest
                return
        elif first.kind == "group" and not blank and first.many in ("", "?"):
            for alternative in (*first.alternatives, *([()] if first.many else [])):
                yield from _value_of((*alternative, *rest))
            return
        elif blank:
            break
        elif first.kind in ("set", "class") and (first.many.startswith("*") or first.text in (r"\S", r"\w", r"\d")):
            raise CannotSay("what it wants between the name and the value cannot be told apart from the value")
        elif first.kind in ("set", "class"):
            pieces = rest if first.many == "" else pieces
            blank = True
        else:
            return
    # An empty value ends in the blank, which maildrop keeps there.
    yield True, pieces


# --- in the message ----------------------------------------------------------------------------------------------


def in_message(pattern: str, options: str) -> Found:
    """The condition that a pattern is in the message. Raises CannotSay."""
    letters = options.partition(",")[0]
    if "," in options or any(char.isdigit() for char in letters):
        raise CannotSay("weighted scoring has no counterpart; add-score adds points to the spam score")
    if unknown := re.sub(r"[hHbD]", "", letters):
        raise CannotSay(f"the option {unknown[0]} is not known")
    case = "D" in letters
    if "b" not in letters and (files := attached(pattern)) is not None:
        return Found(files, {}, "attachments are asked for by their names, those in archives as well")
    alternatives = Reader(pattern).all()
    formulas: list[Formula] = []
    captures: dict[int, Capture] = {}
    doubts: list[str] = []
    if "b" in letters:
        formulas.append(_in_body(pattern, alternatives, case))
        doubts.append("maildrop reads each line of a body; ours reads the first 1 MiB, and HTML as it looks, too")
    if "b" not in letters or re.search("[hH]", letters):
        for pieces in alternatives:
            found = _in_header(pieces, case)
            formulas.append(found.formula)
            captures.update(found.captures)
            doubts.append(found.doubt)
    return Found(any_of(formulas), captures, "; ".join(dict.fromkeys(filter(None, doubts))))


def _in_body(pattern: str, alternatives: tuple[Pieces, ...], case: bool) -> Formula:
    globs = texts_of(alternatives[0]) if len(alternatives) == 1 and not case else None
    if globs and not any(re.search(r"(?<!\\)[*?]", one) for one in globs):
        plain = [re.sub(r"\\(.)", r"\1", one) for one in globs]
        return Leaf("body", {"contains": plain if len(plain) > 1 else plain[0]})
    text = "|".join(map(written, alternatives))
    flags = ("m" if "^" in pattern or "$" in pattern else "") + ("-i" if case else "")
    return Leaf("body", {"regex": f"(?{flags}){text}" if flags else text})


def _in_header(pieces: Pieces, case: bool) -> Found:
    anchored = bool(pieces) and pieces[0].kind == "anchor" and pieces[0].text == "^"
    rest = pieces[1:] if anchored else pieces
    if not written(rest).strip("^$"):
        return Found(TRUE, {})
    heads = list(itertools.islice(_heads(rest), _MOST_NAMES + 1))
    if len(heads) > _MOST_NAMES:
        raise CannotSay("it names too many header fields")
    formulas: list[Formula] = []
    captures: dict[int, Capture] = {}
    doubts = []
    if not anchored and not all(name.lower() in _SPAM_FIELDS for name, _, _ in heads):
        doubts.append("the original has no ^ before the field's name, so that longer names matched as well")
    for name, behind, colon in heads:
        if not colon:
            doubts.append(f"the original has no : behind {name}, so that longer names matched as well")
        if name.lower() in ADDRESS_FIELDS and re.search(r" \\\(", written(behind)):
            doubts.append("maildrop, since 2.7.1, makes a comment a name: Joe <joe@x.org>; ours sees joe@x.org (Joe)")
        if name.lower().startswith(("content-", "mime-")):
            doubts.append("maildrop looks at the headers of a message's parts, too; ours at the message's own alone")
        for number, capture in _captured(name, behind).items():
            captures[number] = capture if len(heads) == 1 else Capture("", "")
        formulas.append(_field(name, behind, case))
    return Found(any_of(formulas), captures, "; ".join(dict.fromkeys(doubts)))


def _field(name: str, behind: Pieces, case: bool) -> Formula:
    field = name.lower()
    if field in _SPAM_FIELDS:
        return _SPAM_FIELDS[field](written(behind))
    found: list[Formula] = []
    values = list(itertools.islice(_value_of(behind), _MOST_NAMES + 1))
    if len(values) > _MOST_NAMES:
        raise CannotSay("it has too many ways to begin")
    for at_start, value in values:
        begins, pieces = _without_brackets(at_start, value) if field == "return-path" else (at_start, value)
        if field == "list-id" and (identifier := _identifier(begins, pieces)) is not None and not case:
            found.append(Leaf("list-id", identifier))
            continue
        test = tested(begins, pieces, case, address=field in ADDRESS_FIELDS)
        found += [header(name, one) for one in (test if isinstance(test, list) else [test])]
    return any_of(found)


def header(name: str, test: Any) -> Leaf:
    """The condition on a field of any name."""
    field = name.lower()
    if field in ("subject", "message-id"):
        if isinstance(test, str) and test and not re.search(r"(?<!\\)[*?]", test):
            test = just(re.sub(r"\\(.)", r"\1", test), whole=True)
        return Leaf(field, test)
    return Leaf("sender", test) if field == "return-path" else Leaf("header", {name: test})


def _without_brackets(begins: bool, pieces: Pieces) -> tuple[bool, Pieces]:
    """For the envelope sender, which has no <> around it as Return-Path has."""
    if pieces and pieces[0].text == "<" and not pieces[0].many:
        begins, pieces = True, pieces[1:]
    core, _ = ended(pieces)
    if core and core[-1].text == ">" and not core[-1].many:
        pieces = (*core[:-1], Piece("anchor", "$"))
    return begins, pieces


def _identifier(begins: bool, pieces: Pieces) -> str | None:
    """The glob for `list-id`, where a pattern names what stands in the <> of List-Id."""
    del begins
    if pieces and pieces[0].kind == "any" and pieces[0].many == "*":
        pieces = pieces[1:]
    if not pieces or pieces[0].text != "<" or pieces[0].many:
        return None
    core, _ = ended(pieces[1:])
    closed = bool(core) and core[-1].text == ">"
    globs = texts_of(core[:-1] if closed else core)
    if globs is None or len(globs) != 1 or ">" in globs[0]:
        return None
    return globs[0] if closed else re.sub(STARRED, "*", f"{globs[0]}*")


# --- what spam scanners wrote ------------------------------------------------------------------------------------

_SAYS = re.compile(r"(?:\.\*|\.\+| |\\s|\[ \]|\[ \\t\]|[*+?]|\()*(yes|no)\b(.*)", re.IGNORECASE)
_POINTS = re.compile(r"\(?(?:\?:)?(?:hits|score)")
_STARS = re.compile(r"(?: |\.\*|\\s|\(|[*+](?!\\))*((?:\\\*)+)(?:\{([0-9]+)(,?)\})?(.*)")


_NO_SPAM = all_of([negated(SPAM), Leaf("score", "> -1000")])
"""A scanner's no: where none has looked at the message, there are no points, and the line is missing."""


def _flag(behind: str) -> Formula:
    said = _SAYS.fullmatch(behind)
    if said:
        return SPAM if said[1].lower() == "yes" else _NO_SPAM
    if re.fullmatch(r"[ .*+\\s]*", behind):
        return SPAM  # SpamAssassin writes the line for spam alone
    raise CannotSay("what it wants of X-Spam-Flag is neither YES nor NO")


def _status(behind: str) -> Formula:
    said = _SAYS.fullmatch(behind)
    if not said:
        raise CannotSay("whether a message was scanned before is no condition; write `spam` or `score`")
    tail = re.sub(r"^\)?[,. *+]*(?:\\s[*+]?)*", "", said[2])
    if tail.strip("$)*.") and not (_POINTS.match(tail) and not re.search(r"=[^(]*[0-9\[]", _ungrouped(tail))):
        raise CannotSay('it reads more of X-Spam-Status than yes and no; write score = ">= 5" in its place')
    return SPAM if said[1].lower() == "yes" else _NO_SPAM


def _ungrouped(tail: str) -> str:
    """What stands outside of brackets: digits there want certain points."""
    while re.search(r"\([^()]*\)", tail):
        tail = re.sub(r"\([^()]*\)", "(", tail)
    return re.sub(r"=\(.*", "=(", tail)


def _level(behind: str) -> Formula:
    found = _STARS.fullmatch(behind)
    if not found or not re.fullmatch(r"\)?(?:\.\*)?\)?\$?", found[4]):
        raise CannotSay('what it wants of X-Spam-Level is no number of stars; write score = ">= 5" in its place')
    stars = len(found[1]) // 2 + (int(found[2]) - 1 if found[2] else 0)
    if "$" in found[4] and not found[3]:
        return all_of([Leaf("score", f">= {stars}"), negated(Leaf("score", f">= {stars + 1}"))])
    return Leaf("score", f">= {stars}")


_SPAM_FIELDS = {"x-spam-flag": _flag, "x-spam-status": _status, "x-spam-level": _level}


# --- what groups captured ----------------------------------------------------------------------------------------


def _captured(name: str, behind: Pieces) -> dict[int, Capture]:
    field = name.lower()
    found = {group.number: Capture(field, "") for group in groups_of(behind) if group.number}
    for index, piece in enumerate(behind):
        if piece.kind == "group" and piece.number and not piece.many:
            found[piece.number] = Capture(field, _role(field, behind, index))
    return found


def _role(field: str, pieces: Pieces, index: int) -> str:
    before, after = written(pieces[:index]), written(pieces[index + 1 :])
    inside = "|".join(map(written, pieces[index].alternatives))
    everything = inside in (".*", ".+")
    if field == "x-spam-status" and re.search(r"(?:hits|score)\)?=$", before):
        return "whole score" if re.match(r"\\\.", after) else "score"
    if field == "list-id" and before.endswith("<"):
        if re.match(r"\\\.|\.(?![*+])", after):
            return "list-name" if everything or "." not in inside or "^." in inside or r"^\." in inside else ""
        if after.startswith(">") and everything:
            return "list-id"
        return "list-name" if re.fullmatch(r"\[\^\\?\.[^\]]*\][*+]", inside) else ""
    if everything and not after.strip("$") and re.fullmatch(r"(?: |\\s|[*+])*", before):
        return "value"
    if field in ("to", "cc", "delivered-to", "x-original-to", "envelope-to") and re.search(r"(?:\\\+|\+|-)$", before):
        return "detail" if after.startswith("@") else ""
    return ""
