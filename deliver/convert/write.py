"""A conversion as the text of a TOML file, for people to read and to go on with (TOML 1.0.0)."""

import re
from collections.abc import Iterable, Mapping

from deliver.convert.model import Conversion

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
_WIDTH = 120


def text(conversion: Conversion, source: str) -> str:
    """The file: every rule with the comments before it, and in its place each line that could not be translated.

    ``source`` is the original's name, for the first line.
    """
    blocks = [_comments([f"Converted from {source}.", *conversion.preface])]
    for name, table in conversion.settings.items():
        blocks.append("\n".join([f"[{_key(name)}]", *_pairs(table)]))
    pieces = [(rule.line, 1, _rule(rule.table, rule.comments)) for rule in conversion.rules]
    for one in conversion.reported:
        said = "almost the same" if one.warning else "not converted"
        lines = (f"    {line}" for line in one.text.splitlines())
        words = [*one.comments, f"line {one.line}, {said}: {one.reason}", *lines]
        pieces.append((one.line, 0, _comments(words)))
    blocks += [block for _, _, block in sorted(pieces, key=lambda piece: piece[:2])]
    if conversion.comments:
        blocks.append(_comments(conversion.comments))
    return "\n\n".join(blocks) + "\n"


def _rule(table: Mapping[str, object], comments: Iterable[str]) -> str:
    lines = [_comments(comments)] if comments else []
    lines += ["[[rule]]", *_pairs({key: value for key, value in table.items() if key != "when"})]
    when = table.get("when")
    if isinstance(when, Mapping) and when:
        lines += ["[rule.when]", *_pairs(when)]
    return "\n".join(lines)


def _comments(lines: Iterable[str]) -> str:
    shown = (_ESCAPED.sub(lambda found: found[0] if found[0] in '"\\\t' else "?", line) for line in lines)
    return "\n".join(f"# {line}".rstrip() for line in shown)


def _pairs(table: Mapping[str, object]) -> list[str]:
    return [f"{_key(key)} = {_value(value, len(key) + 3)}" for key, value in table.items()]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _value(value: object, column: int = 0) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
        case list() | tuple():
            parts = [_value(one) for one in value]
            line = f"[{', '.join(parts)}]"
            if not column or len(line) + column <= _WIDTH:
                return line
            return "\n".join(["[", *(f"    {part}," for part in parts), "]"])
    raise TypeError(f"TOML has no {type(value).__name__}")


def _string(value: str) -> str:
    if "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    if "\n" in value.strip("\n") and not re.search(r'"""|[\x00-\x09\x0b-\x1f\x7f\\]', value) and value[-1] != '"':
        return f'"""\n{value}"""'
    return '"' + _ESCAPED.sub(_escape, value) + '"'


def _escape(found: "re.Match[str]") -> str:
    known = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return known.get(found[0]) or f"\\u{ord(found[0]):04x}"
