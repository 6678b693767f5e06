"""simscan's control/simcontrol: for whom what is looked for (simscan's README).

A line is WHOM:KEY=VALUE,KEY=VALUE. WHOM is an address, a domain, or nothing for everybody else. The first that matches
counts alone: an address before its domain, that before everybody.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from deliver.convert.accepted import accepted
from deliver.convert.model import Conversion, Converted, Reported, Wrong

_LINE = re.compile(r"([^\s:=,]*):(.*)")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_REASON = "forbidden by policy"

_PREFACE = (
    "simscan refused mail before it was accepted. A delivery cannot: so it is held, since a bounce of a virus or of",
    "spam goes to somebody whose address was forged. Lines counted for senders, too; these rules are for recipients.",
)


class _Line(NamedTuple):
    number: int
    text: str
    whom: str  # in lower case
    options: dict[str, str]


def convert(text: str) -> Conversion:
    """Rules for each line, and settings for everybody. Raises Wrong where no line is one of simcontrol's."""
    reported: list[Reported] = []
    lines: list[_Line] = []
    comments: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.fullmatch(line.strip())
        options = _options(found[2]) if found else None
        if line.lstrip().startswith("#"):
            comments.append(line.strip()[1:].strip())
        elif found and options:
            lines.append(_Line(number, line.strip(), found[1].lower(), options))
        elif line.strip():
            reported.append(Reported(number, line.strip(), "expected WHOM:KEY=VALUE,KEY=VALUE, as simcontrol has it"))
    if reported and not lines:
        raise Wrong(reported[0].line, "no line is WHOM:KEY=VALUE,KEY=VALUE, as in simcontrol")
    rules: list[Converted] = []
    settings: dict[str, dict[str, object]] = {}
    # simscan takes the most specific line alone, rules are asked from the top down: each leaves out whom others name.
    for one in lines:
        for made in _made(one, _recipients(one, lines), settings):
            (rules if isinstance(made, Converted) else reported).append(made)  # type: ignore[arg-type]
    return Conversion(tuple(rules), tuple(reported), settings, tuple(comments), _PREFACE)


def _options(text: str) -> dict[str, str] | None:
    """KEY=VALUE, or None where there is anything else. A pattern behind regex= may have commas in it."""
    options: dict[str, str] = {}
    last = ""
    for part in text.strip().split(","):
        key, equals, value = part.partition("=")
        if last == "regex" and (not equals or not re.fullmatch(r"[a-z_]+", key)):
            options[last] += f",{part}"
        elif not equals or not key:
            return None
        else:
            last = key.strip().lower()
            value = value.strip()
            options[last] = value.lower() if value.lower() in {"yes", "no"} else value
    return options


def _recipients(line: _Line, lines: list[_Line]) -> dict[str, object]:
    """The condition for whom a line is: those it names, without those that a more specific line names."""
    if "@" in line.whom:
        return {"recipient": _addresses(line.whom)}
    end = f"@{line.whom}" if line.whom else ""
    specific = [one.whom for one in lines if one.whom not in ("", line.whom) and one.whom.endswith(end)]
    others = [pattern for one in specific for pattern in _addresses(one)]
    when: dict[str, object] = {"recipient": _addresses(line.whom)[0]} if line.whom else {}
    return {**when, "not": {"recipient": others}} if others else when


def _addresses(whom: str) -> list[str]:
    """Of an address also those with an extension, as simscan looks them up; of a domain all. "*" says nothing there."""
    user, _, domain = whom.rpartition("@")
    user, domain, whom = map(_literally, (user, domain, whom))
    return [whom, f"{user}-*@{domain}"] if user else [f"*@{domain}"]


def _literally(text: str) -> str:
    return re.sub(r"([*?\\])", r"\\\1", text)


def _made(line: _Line, whom: dict[str, object], settings: dict[str, dict[str, object]]) -> list[Converted | Reported]:
    found: list[Converted | Reported] = []

    def rule(about: str, table: dict[str, object], when: dict[str, object]) -> None:
        name = f"{about} for {line.whom or 'everybody else'}"
        conditions = {**when, **whom}
        table = {"name": name, **table, **({"when": conditions} if conditions else {})}
        found.append(accepted(line.number, line.text, table))

    for key, value in line.options.items():
        handle = _KEYS.get(key)
        why = handle(line, value, rule, settings) if handle else f'simscan has no key "{key}"'
        if why:
            found.append(Reported(line.number, line.text, f"{key}: {why}"))
    return found


_Rule = Callable[[str, dict[str, object], dict[str, object]], None]
_Settings = dict[str, dict[str, object]]


def _clam(line: _Line, value: str, _rule: _Rule, settings: _Settings) -> str:
    if value == "yes":
        settings.setdefault("clamd", {"on-virus": "quarantine"})
        return ""
    return "viruses are looked for in all mail, whoever it is for" if line.whom else ""


def _spam(line: _Line, value: str, rule: _Rule, settings: _Settings) -> str:
    if value == "yes":
        settings.setdefault("spamd", {})
        if "spam_hits" not in line.options and line.options.get("spam_passthru") != "yes":
            rule("spam", {"sees": "spam", "quarantine": "spam"}, {})
    elif line.whom:
        rule("no spam", {"never-spam": True}, {})
    return ""


def _hits(line: _Line, value: str, rule: _Rule, _settings: _Settings) -> str:
    if not _NUMBER.fullmatch(value):
        return f'expected a number, not "{value}"'
    if line.options.get("spam") != "no" and line.options.get("spam_passthru") != "yes":
        words = f"spam of {value} points or more"
        rule(words, {"sees": "all", "quarantine": words}, {"score": f">= {value}"})
    return ""


def _attach(_line: _Line, value: str, rule: _Rule, _settings: _Settings) -> str:
    if value == "no":
        return ""
    if value == "yes":
        return "the list is in control/ssattach: put its patterns into [attachments] forbidden"
    ends = [end.strip() for end in value.split(":") if end.strip()]
    if not ends:
        return "expected extensions, as .exe:.com"
    patterns = [f"*{_literally(end)}" for end in ends]
    rule("attachments", {"sees": "all", "quarantine": _REASON}, {"attachment": patterns})
    return ""


def _size_limit(line: _Line, value: str, _rule: _Rule, settings: _Settings) -> str:
    if line.whom:
        return "one size holds for all: [spamd] max-size"
    if not value.isdecimal():
        return f'expected bytes, not "{value}"'
    settings.setdefault("spamd", {})["max-size"] = int(value)
    return ""


def _spamuser(line: _Line, value: str, _rule: _Rule, settings: _Settings) -> str:
    if line.whom:
        return 'one setting holds for all: [spamd] user = "{recipient}" is each recipient\'s own'
    settings.setdefault("spamd", {})["user"] = value
    return ""


def _never(words: str) -> Callable[[_Line, str, _Rule, _Settings], str]:
    return lambda _line, value, _rule, _settings: "" if value == "no" else words


_KEYS: dict[str, Callable[[_Line, str, _Rule, _Settings], str]] = {
    "clam": _clam,
    "spam": _spam,
    "spam_hits": _hits,
    "spam_passthru": lambda _line, _value, _rule, _settings: "",  # spam_hits and spam ask for it
    "attach": _attach,
    "regex": _never("no condition looks at raw lines; say `subject`, `header` or `body` with a regex"),
    "trophie": _never("Trophie is no scanner of ours; see [[scanner]]"),
    "size_limit": _size_limit,
    "spamuser": _spamuser,
    "qmailqueue": _never("a delivery gives mail to no queue; see `forward` and [forward]"),
}
