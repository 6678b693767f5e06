"""Sieve tests (RFC 5228 section 5) as the conditions of our rules, for the comparison with Sieve's own assertions."""

import re
from typing import Any, NamedTuple

# What every message has, and none.
ALWAYS: dict[str, Any] = {"size": ">= 0"}
ADDRESSES = ("from", "to", "cc", "reply-to")
ENVELOPE = {"from": "sender", "to": "recipient"}

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(:?[A-Za-z_][A-Za-z0-9_]*)|([0-9]+[KMG]?)|([\[\](),]))', re.DOTALL)


class NoCounterpart(Exception):
    """A Sieve test that our rules cannot say."""


class Call(NamedTuple):
    """One test: its name, its tagged arguments, its other arguments, and the tests in it."""

    name: str
    tags: dict[str, Any]
    arguments: list[Any]
    tests: list["Call"]


def conditions(text: str) -> dict[str, Any]:
    """The [rule.when] table for a Sieve test; raises NoCounterpart."""
    tokens = [next(filter(None, groups)) for groups in _TOKEN.findall(text)]
    call = _test(tokens)
    assert not tokens, tokens
    return _when(call)


def _test(tokens: list[str]) -> Call:
    call = Call(tokens.pop(0).lower(), {}, [], [])
    while tokens and tokens[0] not in {")", ",", "]"}:
        token = tokens.pop(0)
        if token.startswith(":"):
            tag = token[1:].lower()
            call.tags[tag] = (
                _value(tokens.pop(0), tokens) if tag in {"comparator", "value", "count", "content"} else True
            )
        elif token == "(":
            call.tests.append(_test(tokens))
            while tokens.pop(0) == ",":
                call.tests.append(_test(tokens))
        elif token[0] in '"[' or token[0].isdigit():
            call.arguments.append(_value(token, tokens))
        else:
            tokens.insert(0, token)
            call.tests.append(_test(tokens))
    return call


def _value(token: str, tokens: list[str]) -> Any:
    if token == "[":
        values = []
        while (token := tokens.pop(0)) != "]":
            if token != ",":
                values.append(_value(token, tokens))
        return values
    if token[0] == '"':
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
    return int(token[:-1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[token[-1]] if token[-1] in "KMG" else int(token)


def _when(call: Call) -> dict[str, Any]:
    match call.name:
        case "true":
            return ALWAYS
        case "false":
            return {"not": ALWAYS}
        case "not":
            return {"not": _when(call.tests[0])}
        case "allof":
            return {"all": [_when(test) for test in call.tests]}
        case "anyof":
            return {"any": [_when(test) for test in call.tests]}
        case "size":
            return {"size": f"{'>' if 'over' in call.tags else '<'} {call.arguments[0]}"}
        case "exists":
            return {"header": dict.fromkeys(_list(call.arguments[0]), "*")}
        case "header":
            return _header(call)
        case "address" | "envelope":
            return _address(call)
        case "body":
            return {"body": _match(call, _list(call.arguments[0]))}
    raise NoCounterpart(call.name)


def _header(call: Call) -> dict[str, Any]:
    names, keys = map(_list, call.arguments)
    if "count" in call.tags:
        return {"any": [{"header-count": {name: _comparisons(call, keys)}} for name in names]}
    return {"any": [{"header": {name: _match(call, keys)}} for name in names]}


def _address(call: Call) -> dict[str, Any]:
    names, keys = map(_list, call.arguments)
    part = next((tag for tag in ("user", "detail", "domain", "localpart") if tag in call.tags), "")
    if "count" in call.tags:
        raise NoCounterpart("the number of addresses in one field")
    known = {name: name for name in ADDRESSES} if call.name == "address" else ENVELOPE
    if call.name == "envelope" and (unknown := [name for name in names if name.lower() not in known]):
        raise NoCounterpart(f"the envelope's {unknown[0]}")
    wanted = _match(call, keys)
    if part == "localpart":
        part, wanted = "", _before_the_at(wanted)
    wanted = {part: wanted} if part else wanted
    return {
        "any": [
            {known[name.lower()]: wanted} if name.lower() in known else {"header": {name: {"address": wanted}}}
            for name in names
        ]
    }


def _match(call: Call, keys: list[str]) -> Any:
    kind = next((tag for tag in ("contains", "matches", "regex", "value", "count") if tag in call.tags), "is")
    if kind in {"value", "count"}:
        raise NoCounterpart(f"the match :{kind}")
    if call.tags.get("comparator") == "i;octet":
        # Our matches have no case; a pattern may choose.
        around = {"is": ("^", "$"), "contains": ("", "")}
        if kind not in around:
            raise NoCounterpart(f"the match :{kind} with its case")
        front, end = around[kind]
        return {"regex": [f"(?-i){front}{re.sub(r'(?=[^A-Za-z0-9 ])', chr(92) * 2, key)}{end}" for key in keys]}
    if kind == "contains" and "" in keys:
        return "*"  # what contains nothing at all is any that is there
    return {kind: keys}


def _before_the_at(wanted: Any) -> Any:
    if not isinstance(wanted, dict) or not {"is", "contains", "matches"}.intersection(wanted):
        raise NoCounterpart("a pattern for the local part as a whole")
    ((kind, keys),) = wanted.items()
    if kind == "matches":
        return [f"{key}@*" for key in keys]
    plain = [re.sub(r"([*?\\\\])", r"\\\1", key) for key in keys]
    return [f"*{key}*@*" if kind == "contains" else f"{key}@*" for key in plain]


def _comparisons(call: Call, keys: list[str]) -> list[str]:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "="}
    if call.tags["count"] not in signs:
        raise NoCounterpart(f"the comparison {call.tags['count']}")
    return [f"{signs[call.tags['count']]} {key}" for key in keys]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
