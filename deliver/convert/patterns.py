"""Patterns of other languages in the words of our conditions: globs where they say it, else RE2's expressions."""

import re
from typing import Any

from deliver.convert.formulas import Formula, Leaf
from deliver.rules.load import load


class Untranslatable(Exception):
    """Our rules cannot say this; the words say why."""


def sound(table: dict[str, Any]) -> None:
    """Raises Untranslatable, with the loader's words, where it refuses a rule that says this."""
    _rules, problems = load([table], "", user=True)
    if wrong := [problem for problem in problems if not problem.warning]:
        raise Untranslatable(wrong[0].text)


def glob(text: str) -> str:
    """A glob that matches just this text."""
    return re.sub(r"[*?\\]", r"\\\g<0>", text)


def literal(text: str) -> str:
    """An RE2 expression that matches just this text."""
    return re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", text)


def containing(text: str) -> str:
    """What stands for "contains this" where a condition takes text; "*", which every value is, for no text at all."""
    return f"*{glob(text)}*" if text else "*"


def just(text: str, *, whole: bool = False) -> Any:
    """What stands for "is this". ``whole`` says so in a table, where `deliver check` would ask whether a bare string
    was meant to be all of the value.
    """
    return {"is": text} if whole or re.search(r"[*?\\]", text) else text


def cased(pattern: str) -> str:
    """The same RE2 expression with regard to case, which our rules else never have."""
    return f"(?-i){pattern}"


def glob_as_regex(text: str) -> str:
    """An RE2 expression for a glob, for the whole of a text."""
    parts = re.findall(r"\\.|[*?]|[^*?\\]+|\\$", text, re.DOTALL)
    words = [{"*": ".*", "?": "."}.get(part) or literal(re.sub(r"\\(.)", r"\1", part)) for part in parts]
    return f"(?s)^{''.join(words)}$"


def number_as_regex(sign: str, wanted: int) -> str:
    """An RE2 expression for texts that stand in that relation to a number, as i;ascii-numeric has it (RFC 4790 section
    9.1): digits at the beginning are the number, and what begins in any other way is larger than all of them.
    """
    if sign in {"lt", "le"}:
        upper = wanted + 1 if sign == "le" else wanted
        return rf"^(?:{_below(upper)})(?:[^0-9]|$)" if upper > 0 else r"[^\s\S]"
    if sign == "eq":
        return rf"^0*{wanted}(?:[^0-9]|$)" if wanted else r"^0+(?:[^0-9]|$)"
    if sign == "ne":
        both = (number_as_regex("lt", wanted), number_as_regex("gt", wanted))
        return "|".join(one for one in both if one != r"[^\s\S]")
    lower = wanted + 1 if sign == "gt" else wanted
    return rf"^[^0-9]|^$|^0*(?:{_from(lower)})" if lower else r"^"


def _below(limit: int) -> str:
    """The digits of a number below ``limit``, which is 1 or more."""
    text = str(limit)
    ways = [f"[1-9]{_up_to(len(text) - 2)}"] if len(text) > 1 else []
    for at, digit in enumerate(text):
        low = 0 if at else 1
        if int(digit) > low:
            rest = len(text) - at - 1
            ways.append(f"{text[:at]}{_digits(low, int(digit) - 1)}{_any_digits(rest)}")
    return "|".join(["0+", f"0*(?:{'|'.join(ways)})"] if ways else ["0+"])


def _from(limit: int) -> str:
    """Digits, without zeros before them, with which a number of at least ``limit`` begins; ``limit`` is 1 or more."""
    text = str(limit)
    ways = [f"[1-9]{_any_digits(len(text))}", text + r"(?:[^0-9]|$)"]
    for at, digit in enumerate(text):
        if int(digit) < 9:
            rest = len(text) - at - 1
            ways.append(f"{text[:at]}{_digits(int(digit) + 1, 9)}{_any_digits(rest)}")
    return "|".join(ways)


def _digits(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"


def _up_to(count: int) -> str:
    return "" if not count else "[0-9]?" if count == 1 else f"[0-9]{{0,{count}}}"


def _any_digits(count: int) -> str:
    return "" if not count else "[0-9]" if count == 1 else f"[0-9]{{{count}}}"


def number(text: str) -> int:
    """The number at the beginning of a text. Raises Untranslatable."""
    found = re.match(r"[0-9]+", text)
    if not found:
        raise Untranslatable(f'"{text}" is no number')
    return int(found[0])


def one_or_all(values: list[Any]) -> Any:
    """The value of a condition for one value or several, of which any will do. Raises Untranslatable."""
    if not values:
        raise Untranslatable("there is nothing to compare with")
    return values[0] if len(values) == 1 else values


def listed(value: Any) -> list[Any]:
    """What a key that takes one or several holds, as a list."""
    return value if isinstance(value, list) else [value]


def in_units(size: int) -> str:
    """A size in bytes as the configuration writes it."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return str(size)


# --- POSIX -------------------------------------------------------------------------------------------------------

_CLASSES = frozenset("alnum alpha blank cntrl digit graph lower print punct space upper xdigit".split())
_GNU = {"<": r"\b", ">": r"\b", "b": r"\b", "B": r"\B", "w": r"\w", "W": r"\W", "s": r"\s", "S": r"\S"}


def from_posix(pattern: str) -> str:
    """An extended regular expression (regex(7), with what GNU adds) as RE2 writes it; raises Untranslatable."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            part, at = bracket(pattern, at)
            out.append(part)
            continue
        if char == "\\":
            after = pattern[at + 1 : at + 2]
            if after.isdigit():
                raise Untranslatable(f"RE2 has no back reference such as \\{after}")
            if after in {"`", "'"}:
                raise Untranslatable(f"\\{after} is an anchor that RE2 does not know")
            out.append(_GNU.get(after) or (literal(after) if after else r"\\"))
            at += 2
            continue
        if pattern.startswith("{,", at) and pattern[at + 2 : at + 3].isdigit():
            out.append("{0")  # glibc counts from 0 where no least number stands
            at += 1
            continue
        # A brace that begins no interval is a brace (regcomp(3) of glibc); RE2 says the same.
        out.append(char)
        at += 1
    return "".join(out)


def bracket(pattern: str, at: int) -> tuple[str, int]:
    """The bracket expression that begins there, as RE2 writes it, and where it ends. In POSIX a backslash in it is
    itself, and so is "]" at its beginning. Raises Untranslatable.
    """
    start = at
    at += 1
    words = ["["]
    if pattern[at : at + 1] == "^":
        words.append("^")
        at += 1
    first = True
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and not first:
            return "".join([*words, "]"]), at + 1
        first = False
        if found := re.compile(r"\[:([a-z]+):\]").match(pattern, at):
            if found[1] not in _CLASSES:
                raise Untranslatable(f"there is no class [:{found[1]}:]")
            words.append(found[0])
            at = found.end()
            continue
        if pattern.startswith(("[.", "[="), at):
            raise Untranslatable("collating elements ([. .] and [= =]) have no counterpart")
        words.append(f"\\{char}" if char in "\\[]^" else char)
        at += 1
    raise Untranslatable(f'"{pattern[start:]}" has no "]"')


# --- files that come with a message ------------------------------------------------------------------------------

# Possessive, for what can be read in two ways ('"*', "[ ]*"): whoever wrote the filter is not whoever converts it.
_NAMED = re.compile(
    r"""\^?(?:\(?Content-(?:Type|Disposition|\((?:\?:)?(?:Type|Disposition)\|(?:Type|Disposition)\))\)?:?)?"""
    r"""(?:\.\*|\\s[*+]|\[[ \\st]+\][*+]|attachment|[ ;*])*+\(?(?:\?:)?(?:file)?\)?\??name"""
    r"""(?:[ *?]|\[[ \\st]+\][*+?]|\\s[*+?])*+="""
    r"""(?:\.[*+]\??|\[\^[^\]]+\][*+]|\[[ "'\\st]+\][*+?]?|\\?["'][?*]?|[ *])*+"""
    r"""\\\.(?P<ends>\(?(?:\?:)?[A-Za-z0-9|?()\[\]]+)"""
    r"""(?:\\?["'][?*]?|\$|\\>|\\b|\\s[*+?]?|[ ;*]|\["'?\\; ]+\][?*]?)*+""",
    re.IGNORECASE,
)

_MOST_ENDS = 100


def attached(pattern: str) -> Formula | None:
    r"""The condition for a pattern of a part's header line that looks for files by what their names end with, as
    ``name=.*\.(exe|scr)``; None for any other pattern.
    """
    found = _NAMED.fullmatch(pattern)
    if not found or found["ends"].count("(") != found["ends"].count(")"):
        return Leaf("attachment", "*") if re.fullmatch(_ANY_FILE, pattern, re.IGNORECASE) else None
    ends = _ends(found["ends"].replace("?:", ""))
    globs = [f"*.{one.lower()}" for one in ends]
    return Leaf("attachment", one_or_all(list(dict.fromkeys(globs)))) if globs else None


_ANY_FILE = r"\^Content-Disposition:(?:\.\*| *\*?|\[ \]\*|\\s\*)*\"?attachment\"?;?(?:\.\*)?"


def _ends(text: str) -> list[str]:
    """All words that an expression of letters, "|", "?", brackets and sets can be; () where there are too many."""
    ways, rest = _alternatives(text)
    return ways if not rest and len(ways) <= _MOST_ENDS and "" not in ways else []


def _alternatives(text: str) -> tuple[list[str], str]:
    ways: list[str] = []
    row = [""]
    while text and not text.startswith(")"):
        if text.startswith("|"):
            ways, row, text = ways + row, [""], text[1:]
            continue
        inner = [text[0]]
        rest = text[1:]
        if text.startswith("("):
            inner, rest = _alternatives(rest)
            rest = rest[1:]
        elif text.startswith("["):
            letters, _, rest = rest.partition("]")
            inner = list(letters)
        if rest.startswith("?"):
            inner, rest = ["", *inner], rest[1:]
        row = [before + one for before in row for one in inner][: _MOST_ENDS + 1]
        text = rest
    return (ways + row)[: _MOST_ENDS + 1], text
