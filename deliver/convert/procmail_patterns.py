"""procmail's expressions, which are searched for in all lines of a header, as conditions on the fields they mean.

An expression such as ``^(To|Cc):.*boss`` names fields and says what stands in them. It is parsed, its beginnings up to
the ":" are written out as names, and what follows is asked of each field's value.
"""

import re
from collections.abc import Callable, Iterable, Iterator

from deliver.convert import patterns
from deliver.convert.formulas import Formula, Leaf, any_of
from deliver.convert.patterns import Untranslatable
from deliver.convert.procmail_egrep import ANYTHING, DOT, Char, Edge, Group, Node, Repeated, Row, Set, parse
from deliver.convert.spam_lines import spam_line

MOST_WAYS = 200
"""Ways to read an expression that are written out."""

_WORD = "[^a-zA-Z0-9_]"
"""What procmailrc(5) says of \\< and \\>: the character beside a word."""


_FIELDS = [
    f"{before}{name}" for before in ("", "Original-", "Resent-", "Original-Resent-") for name in ("To", "Cc", "Bcc")
]
_FIELDS += ["X-Envelope-To", "Apparently-To", "Apparently-Resent-To"]

# What procmailrc(5), MISCELLANEOUS, says that ^FROM_DAEMON and ^FROM_MAILER stand for.
_DAEMONS = (
    r"Post(?:ma?(?:st(?:e?r)?|n)|office)|(?:send)?Mail(?:er)?|daemon|m(?:mdf|ajordomo)|n?uucp|LIST(?:SERV|proc)|NETSERV"
    r"|o(?:wner|ps)|r(?:e(?:quest|sponse)|oot)|b(?:ounce|bs\.smtp)|echo|mirror"
    r"|s(?:erv(?:ices?|er)|mtp(?:error)?|ystem)|A(?:dmin(?:istrator)?|MMGR|utoanswer)"
)
_MAILERS = (
    r"Post(?:ma(?:st(?:er)?|n)|office)|(?:send)?Mail(?:er)?|daemon|mmdf|n?uucp|ops|r(?:esponse|oot)"
    r"|(?:bbs\.)?smtp(?:error)?|s(?:erv(?:ices?|er)|ystem)|A(?:dmin(?:istrator)?|MMGR)"
)
_FROM = "From Sender Resent-From Resent-Sender X-Envelope-From".split()


def in_header(pattern: str, *, cased: bool, warn: Callable[[str], object]) -> Formula:
    """The conditions for an expression that is searched for in the header. Raises Untranslatable."""
    if pattern in {"^FROM_DAEMON", "^FROM_MAILER"}:
        return _from_program(pattern)
    if re.search(r"=\\\?", pattern):
        raise Untranslatable("our rules look at decoded text, in which there is no =?charset? of RFC 2047")
    found: list[tuple[str, Row]] = []
    for text in _with_macros(pattern):
        for row in text:
            found += _fields(row)
            if len(found) > MOST_WAYS:
                raise Untranslatable("the expression names too many header fields")
    if not found:
        raise Untranslatable("the expression does not say which header field it means")
    names: dict[str, list[Row]] = {}
    for name, row in found:
        known = next((one for one in names if one.lower() == name.lower()), name)
        names.setdefault(known, []).append(row)
    return any_of(_of_field(name, rows, cased, warn) for name, rows in names.items())


def in_body(pattern: str, *, cased: bool) -> Formula:
    """The condition for an expression that is searched for in the body. Raises Untranslatable."""
    if pattern.startswith("^Content-") or re.search(r"name *\*?=", pattern):
        raise Untranslatable('lines of a message\'s parts are not in its text; attachment = "*.exe" asks for names')
    if re.fullmatch(r"[\^(]*(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/]{12,}", pattern):
        raise Untranslatable("the body is looked at as decoded text, in which no base64 is left")
    rows = parse(pattern)
    if len(rows) == 1 and not cased and all(isinstance(node, Char) for node in rows[0]) and rows[0]:
        return Leaf("body", patterns.containing("".join(node.char for node in rows[0] if isinstance(node, Char))))
    return Leaf("body", {"regex": f"{'(?-i)' if cased else ''}(?m){_ways(rows)}"})


def is_in(value: str, pattern: str, *, cased: bool) -> bool:
    """Whether an expression is in a text that is known. Raises Untranslatable.

    RE2, since Python's own patterns may take for ever, and whoever wrote the recipe is not whoever converts it.
    """
    import re2

    if "\\/" in pattern:
        raise Untranslatable(r"\/ takes a part of a variable")
    whole = pattern.endswith("^^") and len(pattern) > 2
    source = _ways(parse(pattern[:-2] if whole else pattern))
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = cased
    try:
        return re2.search(rf"(?m)(?:{source})\z" if whole else f"(?m){source}", value, options) is not None
    except (re2.error, UnicodeEncodeError) as error:
        raise Untranslatable("what a variable is compared with cannot be tried now") from error


def _from_program(macro: str) -> Formula:
    daemon = macro == "^FROM_DAEMON"
    words = _DAEMONS if daemon else _MAILERS
    before, behind = r"^(?:[^>]*[^(.%@a-z0-9])?", r"(?:(?:[^).!:a-z0-9][-_a-z0-9]*)?[%@>\t ][^<)]*(?:\(.*\).*)?)?$"
    parts: list[Formula] = []
    if daemon:
        parts.append(Leaf("header", {"Mailing-List": "*"}))
        parts.append(Leaf("header", {"Precedence": ["*junk*", "*bulk*", "*list*"]}))
        parts.append(Leaf("header", {"To": "Multiple recipients of *"}))
    parts += [Leaf("header", {name: {"regex": f"{before}(?:{words}){behind}"}}) for name in _FROM]
    parts.append(Leaf("sender", {"regex": f"{before}(?:{words})(?:(?:[^).!:a-z0-9][-_a-z0-9]*)?[%@].*)?$"}))
    return any_of(parts)


_TO = re.compile(r"\^TO(_?)")


def _with_macros(pattern: str) -> Iterator[list[Row]]:
    """The rows of an expression in which ^TO_ and ^TO are written out; one list for each alternative."""
    if "^FROM_" in pattern:
        raise Untranslatable("^FROM_DAEMON and ^FROM_MAILER are known where they stand alone")
    around = r"(.*[^-a-zA-Z0-9_.])?"
    names = "|".join(_FIELDS)
    pattern = _TO.sub(
        lambda found: f"(^({names}):{around if found[1] else '(.*[^a-zA-Z])?'})",
        pattern,
    )
    for row in parse(pattern):
        yield list(_opened(row))


def _opened(row: Row) -> Iterator[Row]:
    """The row without groups at its beginning."""
    if row and isinstance(row[0], Group):
        for way in row[0].ways:
            yield from _opened((*way, *row[1:]))
    else:
        yield row


# --- names -------------------------------------------------------------------------------------------------------


def _fields(row: Row) -> Iterator[tuple[str, Row]]:
    """The fields that a row can begin with, each with the row that follows its ":". "From " is the envelope's line."""
    if not row or row[0] != Edge("^"):
        raise Untranslatable('only expressions that begin with the name of a field, as "^Subject:", have a counterpart')
    yield from _named("", row[1:])


def _named(name: str, row: Row) -> Iterator[tuple[str, Row]]:
    if len(name) > 76:
        raise Untranslatable("a header field's name is shorter")
    if not row:
        raise Untranslatable(f'"^{name}" does not say where the field\'s name ends; write "^{name}:"')
    head, rest = row[0], row[1:]
    match head:
        case Char(":"):
            if not name:
                raise Untranslatable("there is no field's name before the colon")
            yield name, rest
        case Char(" ") if name == "From":
            yield "From ", rest
        case Char(char) if "!" <= char <= "~":
            yield from _named(name + char, rest)
        case Group(ways):
            for way in ways:
                yield from _named(name, (*way, *rest))
        case Repeated(node, "?"):
            yield from _named(name, (node, *rest))
            yield from _named(name, rest)
        case Set(source) if _one_letter(source):
            yield from _named(name + source[1], rest)
        case Repeated(node, "*") if node == DOT and name:
            yield f"{name}*", row
        case _:
            raise Untranslatable(f'the name of the header field behind "^{name}" is not written out')


def _one_letter(source: str) -> bool:
    """Whether a bracket expression is a letter in both its cases."""
    return bool(re.fullmatch(r"\[[A-Za-z]{2}\]", source)) and source[1].lower() == source[2].lower()


# --- values ------------------------------------------------------------------------------------------------------


def _of_field(name: str, rows: list[Row], cased: bool, warn: Callable[[str], object]) -> Formula:
    """What is asked of one field: any of the rows."""
    if name == "From ":
        return Leaf("sender", _value(rows, cased, blank=False))
    parts: list[Formula] = []
    if name.endswith("*"):
        name = name[:-1]
        if name == "From":
            parts.append(Leaf("sender", _value(rows, cased, blank=False)))
        warn(f'"^{name}.*" is taken for "^{name}:.*"')
    value = _value(rows, cased)
    lower = name.lower()
    parts.insert(0, Leaf(lower, value) if lower in {"subject", "message-id"} else Leaf("header", {name: value}))
    if lower.startswith("x-spam-"):
        keys = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
        parts += spam_line(lower, "matches", keys, warn)
    return any_of(parts)


def _value(rows: list[Row], cased: bool, *, blank: bool = True) -> object:
    """A text condition's value for rows that begin behind the ":". Our values have lost the blank that stands there."""
    begun = [one for row in rows for one in (_behind_blank(row) if blank else [row])]
    if not begun:
        raise Untranslatable("a blank stands behind a field's colon, and the expression has none there")
    made: list[object] = []
    if len(begun) == 2 and begun[0][:1] == (ANYTHING,) and begun[0][2:] == begun[1]:
        begun = [(ANYTHING, Group(((Edge("^"),), begun[0][1:2])), *begun[1])]  # at a word's beginning, as in ^TO_
    for one in (one for row in begun for one in _spread(_without_blanks(row))):
        text = _of_row(one, cased)
        if text not in made:
            made.append(text)
    if "*" in made:
        return "*"
    return made[0] if len(made) == 1 else made


def _behind_blank(row: Row, depth: int = 0) -> list[Row]:
    """What is left to be found once the first character was a blank."""
    if depth > 50:
        raise Untranslatable("the expression repeats what may be nothing")
    if not row:
        return [()]
    head, rest = row[0], row[1:]
    match head:
        case Char(char):
            return [rest] if char == " " else []
        case Set(source):
            return [rest] if _holds(source, " ") else []
        case Group(ways):
            return [one for way in ways for one in _behind_blank((*way, *rest), depth + 1)]
        case Repeated(node, sign):
            more = () if sign == "?" else (Repeated(node, "*"),)
            once = [(*one, *rest) for one in _behind_blank((node, *more), depth + 1)]
            return once if sign == "+" else _unique([*once, *_behind_blank(rest, depth + 1)])
        case Edge(sign):
            return [rest] if sign in "<>" else []


def _unique(rows: Iterable[Row]) -> list[Row]:
    return list(dict.fromkeys(rows))


def _holds(source: str, char: str) -> bool:
    return source == "." or re.fullmatch(source, char) is not None


def _without_blanks(row: Row) -> Row:
    while row and isinstance(row[0], Repeated) and row[0].sign != "+" and _only_blanks(row[0].node):
        row = row[1:]
    return row


def _only_blanks(node: Node) -> bool:
    if isinstance(node, Set):
        others = any(_holds(node.source, one) for one in "aZ0-.<@!")
        return _holds(node.source, " ") and not others
    return node == Char(" ")


def _spread(row: Row) -> list[Row]:
    """A row with one group of a few words in it, as a row for each: globs read better than expressions."""
    groups = [at for at, node in enumerate(row) if isinstance(node, Group)]
    if len(groups) == 1:
        (at,) = groups
        ways = [(*row[:at], *way, *row[at + 1 :]) for way in row[at].ways]  # type: ignore[union-attr]
        if len(ways) <= _MOST_WORDS and all(_is_plain(_without_end(way)) for way in ways):
            return ways
    return [row]


_MOST_WORDS = 8


def _is_plain(row: Row) -> bool:
    return all(isinstance(node, Char) or node == ANYTHING for node in row)


def _without_end(row: Row) -> Row:
    return row[:-1] if row and row[-1] == Edge("$") else row


def _of_row(row: Row, cased: bool) -> object:
    """A glob or an RE2 expression for a row that begins with the value."""
    for at, node in enumerate(row):
        if node in {Edge("^"), Edge("^^")} or (node == Edge("$") and at < len(row) - 1):
            raise Untranslatable("an expression for several lines has no counterpart")
    inner = _without_end(row)
    ends = inner != row
    while inner and inner[-1] == ANYTHING:
        inner, ends = inner[:-1], False
    if _is_plain(inner) and not cased:
        glob = "".join(patterns.glob(node.char) if isinstance(node, Char) else "*" for node in inner)
        whole = re.sub(r"(?<!\\)\*{2,}", "*", glob if ends else f"{glob}*")
        return whole if "*" in re.sub(r"\\.", "", whole) else patterns.just(_unescaped(whole), whole=True)
    front = inner
    while front and front[0] == ANYTHING:
        front = front[1:]
    begins = "^" if front == inner else ""
    return {"regex": f"{'(?-i)' if cased else ''}{begins}{_source(front)}{'$' if ends else ''}"}


def _unescaped(glob: str) -> str:
    return re.sub(r"\\(.)", r"\1", glob)


def _ways(rows: Iterable[Row]) -> str:
    sources = [_source(row) for row in rows]
    return sources[0] if len(sources) == 1 else f"(?:{'|'.join(sources)})"


def _source(row: Row) -> str:
    return "".join(_one(node) for node in row)


def _one(node: Node) -> str:
    match node:
        case Char(char):
            return patterns.literal(char)
        case Set(source):
            return source
        case Repeated(inner, sign):
            source = _one(inner)
            return f"(?:{source}){sign}" if isinstance(inner, Repeated | Edge) else f"{source}{sign}"
        case Group(ways):
            return f"(?:{'|'.join(_source(way) for way in ways)})"
        case Edge(sign):
            return {"^": "^", "$": "$", "^^": r"\A", "<": f"(?:^|{_WORD})", ">": f"(?:{_WORD}|$)"}[sign]
