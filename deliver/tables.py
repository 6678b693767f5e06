"""From a table of TOML to its class, value by value: a file with ten errors gives ten problems, in people's words."""

import math
import re
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from deliver.rules.model import folder_problem
from deliver.settings import Address, Folder, QuotaLimit, Size, Span, Table
from deliver.units import parse_limit, parse_size, parse_span
from deliver.values import Problem


def names(kind: type[Table]) -> dict[str, Any]:
    """The fields of a table by their keys."""
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def convert(
    kind: type[Table],
    table: dict[str, Any],
    path: tuple[str | int, ...],
    problems: list[Problem],
    known: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """The fields of ``kind`` that ``table`` sets, by field name; what is wrong goes to ``problems``."""
    fields = names(kind)
    values = {}
    for key, value in table.items():
        field = fields.get(key)
        if field is None:
            import difflib

            near = difflib.get_close_matches(key, known or tuple(fields), 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            place = f"[{path[0]}]" if path else "the configuration"
            place = f"[{place}]" if len(path) > 1 else place
            what = "table" if isinstance(value, dict) else "key"
            problems.append(Problem((*path, key), f"{place} has no {what} of this name{hint}"))
            continue
        try:
            values[field.name] = _value(key, value, field.type)
        except (msgspec.ValidationError, ValueError) as error:
            problems.append(Problem((*path, key), _plainly(str(error), field.type)))
    return values


def _value(key: str, value: Any, kind: Any) -> Any:
    if key == "address":
        given = value if isinstance(value, list) else [value]
        if not given:
            raise ValueError('expected an address like "unix:/run/clamav/clamd.ctl" or "tcp:host:port"')
        return tuple(str(_special(Address, one)) for one in given)
    if isinstance(value, float) and math.isnan(value):  # neither above nor below any score
        raise ValueError("expected a number, got nan")
    return msgspec.convert(value, kind, dec_hook=_special)


def _plainly(words: str, kind: Any) -> str:
    """msgspec's sentence without its own names of types, and with the choices where there are some."""
    if get_origin(kind) is Literal:
        return f"expected one of {', '.join(get_args(kind))}"
    if words.startswith("Invalid enum value") and get_origin(kind) is tuple:
        words = re.sub(r" - at `\$.*`$", "", words).replace("Invalid enum value ", "")
        return f"expected some of {', '.join(get_args(get_args(kind)[0]))}, not {words}"
    words = re.sub(r" - at `\$.*`$", "", words)
    if words.startswith("Invalid enum value") and get_origin(kind) is Union:
        choices = [f'"{one}"' for each in get_args(kind) if get_origin(each) is Literal for one in get_args(each)]
        other = "a number without quotes, such as 5.0" if float in get_args(kind) else "an array in []"
        got = words.removeprefix("Invalid enum value ")[1:-1]
        return f'expected {" or ".join([*choices, other])}, got "{got}"'
    return re.sub(r"(?i)(expected |got )`([a-z |]+)`", lambda found: found[1].lower() + _kinds(found[2]), words)


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


def _special(kind: type, value: Any) -> Any:
    """Values that are written as text and mean something else. Raises ValueError with what was expected."""
    if kind is Size and isinstance(value, str | int) and not isinstance(value, bool):
        return Size(parse_size(str(value)))
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, got {value!r}")
    if kind is Span:
        return Span(parse_span(value))
    if kind is QuotaLimit:
        parse_limit(value)
    if kind is Folder and (wrong := folder_problem(value)):
        raise ValueError(wrong)
    if kind is Address:
        found = re.fullmatch(r"unix:/.{1,106}|tcp:.+:([0-9]{1,5})", value)
        if not found or (found[1] and not 1 <= int(found[1]) <= 65535):
            raise ValueError(f'expected "unix:/path" (107 bytes at most) or "tcp:host:port", got "{value}"')
    return kind(value)
