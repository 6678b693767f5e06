"""Filters that sqwebmail writes (maildir/maildirfilter.C): each rule stands in "##" comments before its code.

    #MFMAILDROP=2
    ##Op:contains
    ##Header:Subject
    ##Value:invoice
    ##Folder:.Invoices
    ##From:
    ##PlainString
    ##Name:invoices

Marks without a value are PlainString (else Value is a pattern), DoesNot, Body and Continue. The folder is "." for the
inbox, ".Name", "!address", "*text for a bounce", "+autoresponse" or "exit". Name comes last.
"""

import re
from typing import Any, NamedTuple

from deliver.convert.formulas import TRUE, Formula, Leaf, any_of, negated, table
from deliver.convert.maildrop_parse import Bare, Deliver, If, Parsed
from deliver.convert.maildrop_patterns import in_message
from deliver.convert.maildrop_pcre import CannotSay
from deliver.convert.maildrop_values import hasaddr
from deliver.convert.model import Conversion, Converted, Reported
from deliver.rules.load import load


class _Rule(NamedTuple):
    line: int
    fields: dict[str, str]
    marks: frozenset[str]


def convert(text: str, parsed: Parsed) -> Conversion | None:
    """The rules of such a file; None for any other, and for one whose code somebody has changed."""
    if not re.match(r"#MFMAILDROP=[12]\b", text):
        return None
    found = _rules(parsed)
    ifs = [one for one in parsed.block.body if isinstance(one, If)]
    others = [one for one in parsed.block.body if not isinstance(one, If | Bare | Deliver)]
    if not found or len(found) != len(ifs) or others or any(one.otherwise for one in ifs):
        return None
    rules, reported = [], []
    lines = text.splitlines()
    for one, code in zip(found, ifs, strict=True):
        try:
            made = _rule(one)
            _, problems = load([made], "converted", user=True)
            if errors := [problem.text for problem in problems if not problem.warning]:
                raise CannotSay(errors[0])
        except CannotSay as error:
            block = "\n".join(lines[one.line - 1 : code.end])
            reported.append(Reported(one.line, block, f"{error}; such mail goes on to the rules below"))
        else:
            rules.append(Converted(one.line, made))
            if "Body" in one.marks:
                why = "ours reads the first 1 MiB of text, and HTML as it looks, too"
                reported.append(Reported(one.line, lines[one.line - 1], why, warning=True))
    return Conversion(tuple(rules), tuple(reported))


def _rules(parsed: Parsed) -> list[_Rule]:
    found: list[_Rule] = []
    fields: dict[str, str] = {}
    marks: set[str] = set()
    first = 0
    for line, comment in parsed.comments:
        if not comment.startswith("#"):
            continue
        name, colon, value = comment[1:].strip().partition(":")
        first = first or line
        if colon:
            fields[name.lower()] = value.strip()
        else:
            marks.add(name)
        if name.lower() == "name" and "op" in fields:
            found.append(_Rule(first, fields, frozenset(marks)))
            fields, marks, first = {}, set(), 0
    return found


def _rule(one: _Rule) -> dict[str, Any]:
    made: dict[str, Any] = {"name": one.fields["name"]} if one.fields["name"] else {}
    formula = _condition(one)
    made.update(_action(one.fields.get("folder", ""), goes_on="Continue" in one.marks))
    when = table(negated(formula) if "DoesNot" in one.marks else formula)
    return {**made, "when": when} if when else made


def _condition(one: _Rule) -> Formula:
    value, operation = one.fields.get("value", ""), one.fields["op"].lower()
    pattern = re.sub(r"[^A-Za-z0-9\x80-\U0010ffff]", r"\\\g<0>", value) if "PlainString" in one.marks else value
    field = one.fields.get("header", "")
    body = "Body" in one.marks
    kind = "Content-Type"
    match operation:
        case "startswith":
            return in_message(f"^{pattern}", "b").formula if body else in_message(f"^{field}: *{pattern}", "").formula
        case "endswith":
            return in_message(f"{pattern}$", "b").formula if body else in_message(f"^{field}:.*{pattern}$", "").formula
        case "contains":
            return in_message(pattern, "b").formula if body else in_message(f"^{field}:.*{pattern}", "").formula
        case "hasrecipient":
            return hasaddr(value)
        case "islargerthan":
            return Leaf("size", f"> {value}")
        case "mimemultipart":
            return Leaf("header", {kind: "multipart/mixed*"})
        case "textplain":
            none = negated(Leaf("header", {kind: "*"}))
            return any_of([none, *(Leaf("header", {kind: one}) for one in ("text/plain", "text/plain;*"))])
        case "anymessage":
            return TRUE
    raise CannotSay(f'"{operation}" is no test of sqwebmail\'s that is known')


def _action(folder: str, *, goes_on: bool) -> dict[str, Any]:
    sign, rest = folder[:1], folder[1:]
    if folder == "exit":
        return {"discard": True}
    if sign == "!":
        addresses = rest.replace(",", " ").split()
        return {"copy" if goes_on else "forward": addresses if len(addresses) != 1 else addresses[0]}
    if sign == "*":
        return {"bounce": rest.strip() or True}
    if sign == "+":
        named = rest.split(",")[0].split("/")[-1].strip()
        raise CannotSay(f"the answer is a text of its own: [rule.reply] with text = what is in autoresponses/{named}")
    if sign != ".":
        raise CannotSay(f'"{folder}" is no folder of sqwebmail\'s')
    return {"copy" if goes_on else "file": rest or "INBOX"}
