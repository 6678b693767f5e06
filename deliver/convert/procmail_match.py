r"""What procmail keeps of a message in $MATCH, by "\/" in an expression (procmailrc(5)), as placeholders of ours."""

import re

from deliver.convert.patterns import Untranslatable
from deliver.convert.procmail_egrep import ANYTHING, Char, Edge, Repeated, Row, Set, parse
from deliver.convert.procmail_variables import placeholder

_LIST = {"list-id"}
_OWN = {"to", "cc", "delivered-to", "x-original-to", "envelope-to", "x-envelope-to"}


def parted(pattern: str) -> tuple[str, str] | None:
    r"""What stands before and behind the last "\/" of an expression; None where it has none."""
    found = re.search(r"(?<!\\)((?:\\\\)*)\\/(?!.*(?<!\\)(?:\\\\)*\\/)", pattern, re.DOTALL)
    return (pattern[: found.end(1)], pattern[found.end() :]) if found else None


def matched(before: str, behind: str) -> str | None:
    """The value of $MATCH for an expression in these two parts, None where no placeholder of ours says it."""
    try:
        first, taken = parse(before.replace("()", "") or "^"), parse(behind.replace("()", ""))
    except Untranslatable:
        return None
    named = re.match(r"\^([A-Za-z-]+):", before)
    if len(first) != 1 or len(taken) != 1 or not named:
        return None
    name, row = named[1].lower(), first[0]
    last = row[-1]
    if name == "subject" and taken[0] in ((ANYTHING,), (Repeated(Set("."), "+"),)) and _blank(row[len(name) + 2 :]):
        return placeholder("subject")
    if name in _LIST and last in (Char("<"), Set("[<]")):
        return _of_list(taken[0])
    if name in _OWN and last in (Char("+"), Set("[+]"), Set(r"[\+]")):
        return placeholder("extension") if _takes(taken[0], "az09-_.", "@") else None
    return None


def narrowed(value: str, pattern: str) -> str | None:
    """What of a value is in $MATCH, where the expression cuts the list's name out of its identifier; else None."""
    parts = parted(pattern)
    if parts is None or value != placeholder("list-id") or parts[0].replace("()", "").strip("^"):
        return None
    try:
        (row,) = parse(parts[1].removeprefix("^"))
    except (Untranslatable, ValueError):
        return None
    found = _of_list(row)
    return found if found == placeholder("list-name") else None


def _of_list(row: Row) -> str | None:
    if _takes(row, "az09-_", "."):
        return placeholder("list-name")
    return placeholder("list-id") if _takes(row, "az09-_.", ">") else None


def _takes(row: Row, all_of: str, none_of: str) -> bool:
    """Whether the row is one set, repeated, with these characters in it and without those."""
    if len(row) != 1 or not isinstance(row[0], Repeated) or row[0].sign == "?":
        return False
    node = row[0].node
    if not isinstance(node, Set) or node.source == ".":
        return False
    holds = re.compile(node.source, re.IGNORECASE).fullmatch
    return all(holds(char) for char in all_of) and not any(holds(char) for char in none_of)


def _blank(row: Row) -> bool:
    """Whether there is nothing but blanks in the row."""
    for node in row:
        inner = node.node if isinstance(node, Repeated) else node
        if inner != Char(" ") and not (isinstance(inner, Set) and set(inner.source) <= set("[ \t]")):
            return isinstance(inner, Edge)
    return True
