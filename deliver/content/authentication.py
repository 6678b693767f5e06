"""What Authentication-Results fields say (RFC 8601), of those that a trusted server wrote."""

import re
from collections.abc import Iterable
from typing import NamedTuple

MOST = 100
"""Results of one message that are looked at."""

_FOLD = re.compile(rb"\r?\n(?=[ \t])")
_PIECE = re.compile(r'\\.|["();]|[^\\"();]+|\\', re.DOTALL)
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s";])+')
_DOMAINS = {"dkim": ("header.d", "header.i"), "spf": ("smtp.mailfrom", "smtp.helo"), "dmarc": ("header.from",)}


class Result(NamedTuple):
    """One method's result, in lower case: ``method`` "dkim", ``result`` "pass", the ``domain`` it is about or ""."""

    method: str
    result: str
    domain: str = ""


def results(fields: Iterable[bytes], trusted: frozenset[str]) -> list[Result]:
    """The results in those fields whose authserv-id is trusted. Never raises."""
    found: list[Result] = []
    for raw in fields:
        if len(found) >= MOST:
            break
        server, *said = _sections(_FOLD.sub(b"", raw).decode("utf-8", "replace"))
        # As bytes, in which no letter beyond ASCII is a blank or becomes "k": the trusted server, which takes out what
        # comes in its name, is not deceived by these either.
        words = server.encode().lower().split()
        if words and words[0].strip(b'"').decode() in trusted:
            found += [one for part in said if (one := _result(part))]
    return found[:MOST]


def _sections(text: str) -> list[str]:
    """What stands between semicolons, comments left out. Comments and quoted strings hold what strangers wrote, such as
    an address: where one never ends, nothing of the field is believed.
    """
    sections = [""]
    depth = 0
    quoted = False
    for found in _PIECE.finditer(text):
        piece = found[0]
        if piece == '"' and not depth:
            quoted = not quoted
        elif not quoted and piece in {"(", ")"}:
            depth = max(depth + (1 if piece == "(" else -1), 0)
            piece = " "
        elif piece == ";" and not quoted and not depth:
            sections.append("")
            continue
        if not depth:
            sections[-1] += piece
    return sections if not quoted and not depth else [""]


def _result(text: str) -> Result | None:
    words = _WORD.findall("=".join(piece.strip() for piece in text.split("=")))
    if not words:
        return None
    method, equals, result = words[0].partition("=")
    if not equals:
        return None  # "none": nothing was checked
    method = method.partition("/")[0].lower()
    pairs = (word.partition("=") for word in words[1:])
    properties = {key.lower(): value.strip('"').lower() for key, _, value in pairs}
    named = next((properties[key] for key in _DOMAINS.get(method, ()) if properties.get(key)), "")
    return Result(method, result.strip('"').lower(), named.rpartition("@")[2])
