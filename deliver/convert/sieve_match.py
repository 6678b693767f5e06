"""What a match of a Sieve script has put into ${0}, ${1} and so on (RFC 5229 section 3.2), as placeholders of ours."""

import re
from collections.abc import Sequence

from deliver.convert.sieve_source import Command

_WHOLE = {
    ("header", "subject", "all"): "subject",
    ("header", "message-id", "all"): "message-id",
    ("address", "from", "all"): "from",
    ("address", "from", "localpart"): "from-user",
    ("address", "from", "domain"): "from-domain",
    ("address", "to", "detail"): "extension",
    ("envelope", "from", "all"): "sender",
    ("envelope", "from", "localpart"): "sender-user",
    ("envelope", "from", "domain"): "sender-domain",
    ("envelope", "to", "all"): "recipient",
    ("envelope", "to", "user"): "user",
    ("envelope", "to", "detail"): "extension",
    ("envelope", "to", "domain"): "domain",
    ("currentdate", "year", "all"): "year",
    ("currentdate", "month", "all"): "month",
    ("currentdate", "day", "all"): "day",
    ("currentdate", "date", "all"): "date",
}
"""The placeholder for all that a test looks at: its name, its field, part of the envelope or of the time, the part of
the address.
"""

_EVERYTHING = {"matches": ("*",), "regex": ("(.*)", "^(.*)$", "(.+)", "^(.+)$")}

# In List-Id, "<announce.lists.example.org>": all of it, or its first label.
_LIST = re.compile(r"<(?:\*|\((?:\.[*+]|\[[^]]*\][*+])\))>")
_LABEL = re.compile(r"<(?:\*\.|\((?:\[\^[^]]*\.[^]]*\]|\[[^].^][^].]*\])[*+]\)(?:\\\.|\[@?\.@?\]))")

SMALL = frozenset("list-id list-name from-domain sender-domain domain extension year month day date".split())
"""Placeholders whose values are in small letters, or become so in a folder's name."""


def captured(test: Command, kind: str, fields: Sequence[str], part: str, keys: Sequence[str]) -> list[str | None]:
    """The values of ${0}, ${1} and so on once the test holds; None where no placeholder stands for one.

    ``kind`` is "matches" or "regex", ``fields`` and ``part`` are what the test looks at, ``keys`` its patterns.
    """
    if len(fields) != 1 or len(keys) != 1:
        return [None] * 10
    field, key = fields[0].lower(), keys[0]
    whole = _WHOLE.get((test.name, field, part))
    if whole and key in _EVERYTHING[kind]:
        return [f"{{{whole}}}"] * 2
    if (test.name, field, part, key) == ("address", "from", "all", "*@*"):
        return ["{from}", "{from-user}", "{from-domain}"]
    found: list[str | None] = [None] * (_groups(key, kind) + 1)
    if (test.name, field) == ("header", "list-id"):
        for pattern, placeholder in ((_LIST, "{list-id}"), (_LABEL, "{list-name}")):
            if one := pattern.search(key):
                found[_groups(key[: one.start()], kind) + 1] = placeholder
    return found


def _groups(key: str, kind: str) -> int:
    """How many variables a pattern fills, or the part of one."""
    signs = r"\\.|([*?])" if kind == "matches" else r"\\.|\[\]?[^]]*\]|(\()"
    return sum(bool(one) for one in re.findall(signs, key))
