"""From a table of TOML to its class, value by value: a file with ten errors gives ten problems, in people's words."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from deliver.rules.matching import closest, kind, quoted
from deliver.rules.model import folder_problem
from deliver.settings import TABLES, TOP, Address, Folder, QuotaLimit, Size, Span, Table
from deliver.units import parse_limit, parse_size, parse_span
from deliver.values import Problem


def names(kind: type[Table]) -> dict[str, Any]:
    """The fields of a table by their keys."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def convert(
    table_kind: type[Table],
    table: dict[str, Any],
    path: tuple[str | int, ...],
    problems: list[Problem],
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of ``table_kind`` that ``table`` sets, by field name; what is wrong goes to ``problems``.

    ``known`` are the keys that there are, where these are not just the fields.
    """
    fields = names(table_kind)
    known = known or tuple(fields)
    values = {}
    for key, value in table.items():
        field = fields.get(key) if key in known else None
        if field is None:
            problems.append(Problem((*path, key), _unknown(key, value, path, known)))
            continue
        try:
            values[field.name] = _value(key, value, field.type)
        except msgspec.ValidationError as error:
            problems.append(Problem((*path, key), _plainly(str(error), field.type, key, value)))
        except ValueError as error:
            problems.append(Problem((*path, key), str(error)))
    return values


def _unknown(key: str, value: Any, path: tuple[str | int, ...], known: Sequence[str]) -> str:
    """What is wrong with a key that does not exist, and which one is probably meant."""
    place = f"[{path[0]}]" if path else "the configuration"
    place = f"[{place}]" if len(path) > 1 else place
    what = "table" if isinstance(value, dict) else "key"
    plain = key.lower().replace("_", "-")
    elsewhere = "" if what == "table" or plain in known else _elsewhere(plain, path)
    if hint := elsewhere or closest(_OTHER_TABLES.get(plain, key), known):
        return f"{place} has no {what} of this name{hint}"
    listed = tuple(known) if path else TOP
    if not path and isinstance(value, dict | list):
        listed = tuple(name for name in known if name not in TOP)
    return f"{place} has no {what} of this name (there are {', '.join(listed)})"


def _elsewhere(key: str, path: tuple[str | int, ...]) -> str:
    """Where a key belongs that stands in the wrong table; "" if nowhere, or in too many places to tell."""
    if path and key in TOP:
        return "; it stands above the first table"
    owners = [table for table, each in TABLES.items() if key in names(each)]
    return f"; it belongs to {' or '.join(f'[{table}]' for table in owners)}" if 1 <= len(owners) <= _FEW else ""


_FEW = 3

_OTHER_TABLES = {"spamassassin": "spamd", "antivirus": "clamd", "virus": "clamd", "filter": "rule"}
"""What people call our tables."""


def _value(key: str, value: Any, field_type: Any) -> Any:
    if key == "address":
        given = value if isinstance(value, list) else [value]
        if not given:
            raise ValueError('expected an address like "unix:/run/clamav/clamd.ctl" or "tcp:host:port"')
        return tuple(str(_special(Address, one)) for one in given)
    if isinstance(value, float) and math.isnan(value):  # neither above nor below any score
        raise ValueError("expected a number, got nan")
    return msgspec.convert(value, field_type, dec_hook=_special)


def _plainly(words: str, field_type: Any, key: str, value: Any) -> str:
    """msgspec's sentence without its own names of types; with the choices where there are some, and what is meant."""
    if get_origin(field_type) is Literal:
        return f"expected one of {', '.join(get_args(field_type))}, not {_shown(value, get_args(field_type))}"
    if words.startswith("Invalid enum value") and get_origin(field_type) is tuple:
        known = get_args(get_args(field_type)[0])
        wrong = next(one for one in value if one not in known)
        return f"expected some of {', '.join(known)}, not {_shown(wrong, known)}"
    words = re.sub(r" - at `\$.*`$", "", words)
    if get_origin(field_type) is Union:
        choices = [f'"{one}"' for each in get_args(field_type) if get_origin(each) is Literal for one in get_args(each)]
        other = "a number without quotes, such as 5.0" if float in get_args(field_type) else "an array in []"
        got = f'"{value}"' if isinstance(value, str) else kind(value)
        return f"expected {' or '.join([*choices, other])}, got {got}"
    words = re.sub(r"(?i)(expected |got )`([a-z |]+)`", lambda found: found[1].lower() + _kinds(found[2]), words)
    if words.startswith("expected an array") and isinstance(value, str):
        array = value.split() if key == "command" else [value]
        return f"{words}; write {json.dumps(array, ensure_ascii=False)}"
    if re.match("expected (a number|a whole number|true or false), got text", words):
        return f"{words}; write it without quotes"
    return words


def _shown(value: Any, choices: Sequence[str]) -> str:
    """A value that is none of the choices, and the one that is probably meant."""
    if not isinstance(value, str):
        return kind(value)
    if value in _OTHER_WORDS.values():  # no slip, but it cannot be had here
        return quoted(value)
    meant = _OTHER_WORDS.get(value.strip().lower(), "")
    return quoted(value) + (f'; did you mean "{meant}"?' if meant in choices else closest(value, choices))


_OTHER_WORDS = {
    **dict.fromkeys(("reject", "refuse", "fail"), "bounce"),
    **dict.fromkeys(("delete", "drop", "remove"), "discard"),
    **dict.fromkeys(("tempfail", "temporary", "retry"), "defer"),
    **dict.fromkeys(("accept", "pass", "keep"), "deliver"),
    **dict.fromkeys(("hold", "isolate"), "quarantine"),
    **dict.fromkeys(("tag", "flag"), "mark"),
}
"""What mail servers and other filters call our choices."""


def _kinds(names: str) -> str:
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | "))


_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array in []",
    "object": "a table",
    "null": "nothing",
}
"""TOML's words for msgspec's types."""


_SUCH_AS: dict[type, str] = {
    Span: ': a span of time such as "5 min"',
    Size: ': a size such as "25 MiB"',
    QuotaLimit: ': a limit such as "100 MB, 10000 messages"',
    Address: ': an address such as "unix:/run/clamav/clamd.ctl" or "tcp:127.0.0.1:783"',
}


def _special(kind_of_text: type, value: Any) -> Any:
    """Values that are written as text and mean something else. Raises ValueError with what was expected."""
    if kind_of_text is Size and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        got = value if isinstance(value, int | float | list) and not isinstance(value, bool) else kind(value)
        raise ValueError(f"expected text in quotes, got {got}{_SUCH_AS.get(kind_of_text, '')}")
    if kind_of_text is Size:
        return Size(parse_size(value))
    if kind_of_text is Span:
        return Span(parse_span(value))
    if kind_of_text is QuotaLimit:
        parse_limit(value)
    if kind_of_text is Folder and (wrong := folder_problem(value)):
        raise ValueError(wrong)
    if kind_of_text is Address:
        _check_address(value)
    return kind_of_text(value)


def _check_address(text: str) -> None:
    from deliver.scanners import address  # only a site's file has some, not a user's

    try:
        address.parse(text)
    except ValueError:
        near = address.meant(text)
        hint = f'; did you mean "{near}"?' if near else ""
        words = f'expected "unix:/path" (107 bytes at most) or "tcp:host:port", got "{text}"{hint}'
        raise ValueError(words) from None
