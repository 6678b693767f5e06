"""The programs that change a message for procmail, or print a word for it, as edits and placeholders of ours."""

import re
from collections.abc import Callable
from typing import Any

from deliver.convert import dates
from deliver.convert.patterns import Untranslatable
from deliver.convert.procmail_source import words
from deliver.convert.procmail_variables import of_message, placeholder, with_placeholders

Value = Callable[[str], str | None]
"""What a word of a command stands for, None where only a delivery can tell."""

NOT_EDITED = "rules change a message by add-header, remove-header and tag-subject alone"

_SUBJECT = placeholder("subject")
_SED = re.compile(
    r"""(?:\S*/)?sed\s+(?:-e\s*)?(['"])(?:1,/\^\$/\s*)?s(?P<mark>[/|!,])\^Subject:(?:\[[ \t]+\]|\s|\\s)?\*?"""
    r"""(?P=mark)Subject:\s++(?P<tag>[^/|!,&\\'"$\s](?:[^/|!,&\\'"$]*[^/|!,&\\'"$\s])?)\s*+(?P=mark)[1iI]*\1"""
)


def said(command: str, value: Value) -> str | None:
    """What a command between back quotes prints, None where only a delivery can tell."""
    parts = words(command)
    name = parts[0].rpartition("/")[2] if parts else ""
    if name == "date" and len(parts) == 2:
        form = value(parts[1]) or ""
        if not form.startswith("+") or of_message(form):
            return None
        pieces = dates.parts(form[1:])
        return "".join(placeholder(one) if at % 2 else one for at, one in enumerate(pieces))
    if name == "formail" and re.fullmatch(r"\S+\s+-[cz]*x\s*(['\"]?)Subject:?\1", command.strip()):
        return _SUBJECT
    return None


def edits(command: str, value: Value) -> tuple[dict[str, Any], list[str]]:
    """What formail(1) and sed(1) do to a header, as keys of a rule, and what is not quite the same.

    Raises Untranslatable.
    """
    if found := _SED.fullmatch(command):
        return {"tag-subject": found["tag"]}, []
    parts = words(command)
    if not parts or parts[0].rpartition("/")[2] != "formail" or len(parts) < 2:
        raise Untranslatable(NOT_EDITED)
    adds: dict[str, str] = {}
    removes: list[str] = []
    warnings: list[str] = []
    tag = ""
    at = 1
    while at < len(parts):
        option = re.match(r"-([AaiI])", parts[at])
        if not option:
            raise Untranslatable(NOT_EDITED)
        word = parts[at][2:]
        if not word:
            at += 1
            word = parts[at] if at < len(parts) else ""
        at += 1
        line = value(word)
        if line is None:
            raise Untranslatable("the header line depends on the message, or on a program")
        name, colon, text = line.partition(":")
        if not name or of_message(name) or (not colon and option[1] != "I"):
            raise Untranslatable("formail wants a header field here")
        text = text.strip()
        if name.lower() == "subject" and text.endswith(_SUBJECT) and option[1] in "iI":
            tag = text.removesuffix(_SUBJECT).strip()
            if not tag or of_message(tag):
                raise Untranslatable(NOT_EDITED)
            continue
        if option[1] == "I":
            removes.append(name)
        if text:
            adds[name] = with_placeholders(text)
        elif option[1] != "I":
            removes.append(name)
        if option[1] in "ai":
            warnings.append("the line is added, whether or not one of its name is there, which stays")
    keys: dict[str, Any] = {}
    if removes:
        keys["remove-header"] = removes if len(removes) > 1 else removes[0]
    if adds:
        keys["add-header"] = adds
    if tag:
        keys["tag-subject"] = tag
    return keys, warnings
