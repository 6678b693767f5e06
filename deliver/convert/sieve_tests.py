"""Sieve's tests as conditions of our rules, which answer the same but for what docs/sieve-differences.md says."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deliver.convert import patterns, sieve_times
from deliver.convert.formulas import FALSE, TRUE, Formula, Guard, Leaf, all_of, any_of, any_way, negated
from deliver.convert.patterns import Untranslatable
from deliver.convert.sieve_match import captured
from deliver.convert.sieve_source import Command
from deliver.convert.spam_lines import spam_line
from deliver.convert.variables import Held, Variables, braced
from deliver.rules.placeholders import names as placeholders
from deliver.rules.placeholders import put

_ADDRESSES = frozenset({"from", "to", "cc", "reply-to"})
_ENVELOPE = {"from": "sender", "to": "recipient"}
_MATCHES = ("is", "contains", "matches", "regex", "count", "value")
_CASEMAP = "i;ascii-casemap"
"""The comparator of a test that names none (RFC 5228 section 2.7.3)."""
_SIGNS = sieve_times.SIGNS
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_.]*|[0-9]+)\}")
_ENCODED = re.compile(r"\$\{(hex|unicode):([0-9A-Fa-f\s]*)\}", re.IGNORECASE)


@dataclass
class Scope:
    """What is known at one place of a script.

    ``extensions`` are those that it asks for: without "variables" a "${" is itself. ``matches`` are the match variables
    that stand anywhere in it ("1"). ``guard`` is the way to this place, without the messages that a stop has ended
    above, which ``stopped`` leaves out; ``held`` what the variables of the command at hand hold for the messages in
    question. ``flags`` are those set so far, each with the way that led there. ``edited``
    are header fields that the script has changed. ``warnings`` are collected: what has become nearly the same.
    """

    extensions: frozenset[str] = frozenset()
    matches: frozenset[str] = frozenset()
    guard: Guard = ()
    stopped: list[Formula] = field(default_factory=list)
    variables: Variables = field(default_factory=Variables)
    held: Held = field(default_factory=dict)
    flags: dict[str, Formula] = field(default_factory=dict)
    edited: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)

    def said(self, raw: str) -> str:
        """The string with its variables (RFC 5229 section 3), as rules have it: with placeholders for what comes of the
        message, and braces doubled. Raises Untranslatable.
        """
        text = self._decoded(raw)
        if "variables" not in self.extensions:
            return braced(text)
        pieces, at = [], 0
        for found in _VARIABLE.finditer(text):
            known = self.held.get(found[1].lower())
            if known is None:
                raise Untranslatable(f"what {found[0]} is depends on the message")
            pieces += [braced(text[at : found.start()]), known]
            at = found.end()
        return "".join([*pieces, braced(text[at:])])

    def text(self, raw: str) -> str:
        """The string with its variables, where it is the same for every message. Raises Untranslatable."""
        said = self.said(raw)
        if placeholders(said):
            found = _VARIABLE.search(raw)
            raise Untranslatable(f"what {found[0] if found else raw} is depends on the message")
        return put(said, {})

    def _decoded(self, raw: str) -> str:
        """The string with its encoded characters (RFC 5228 section 2.4.2.4)."""
        if "encoded-character" not in self.extensions:
            return raw

        def character(found: re.Match[str]) -> str:
            try:
                numbers = [int(word, 16) for word in found[2].split()]
                octets = bytes(numbers) if found[1].lower() == "hex" else "".join(map(chr, numbers)).encode()
                return octets.decode()
            except (OverflowError, ValueError):  # no octet, no character, no UTF-8
                return found[0]

        return _ENCODED.sub(character, raw)

    def worlds(self, command: Command) -> list[tuple[Formula, Held]]:
        """What the variables of a command may hold here, and for which messages. Raises Untranslatable."""
        if "variables" not in self.extensions:
            return [(TRUE, {})]
        names = [name.lower() for raw in _strings(command) for name in _VARIABLE.findall(self._decoded(raw))]
        return self.variables.worlds(names, (*self.guard, *self.stopped))

    def match(self, when: Formula, values: Sequence[str | None]) -> None:
        """Where this holds, the match variables have these values (RFC 5229 section 3.2), those behind them none."""
        for name in self.matches:
            value = values[int(name)] if int(name) < len(values) else ""
            self.variables.assign(name, (*self.guard, when), value)

    def texts(self, raw: Any) -> list[str]:
        """A string or a list of them."""
        return [self.text(one) for one in _listed(raw)]

    def warn(self, words: str) -> None:
        """Something is nearly the same."""
        if words not in self.warnings:
            self.warnings.append(words)


def _strings(command: Command) -> Iterator[str]:
    for value in (*command.tags.values(), *command.arguments.values()):
        yield from (one for one in _listed(value) if isinstance(one, str))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def formula(test: Command, scope: Scope) -> Formula:
    """The conditions that stand for a test. Raises Untranslatable."""
    if test.name in _COMBINATIONS:
        return _COMBINATIONS[test.name](test, scope)
    if test.name not in _TESTS:
        raise Untranslatable(f'there is no condition for the test "{test.name}"')
    answers: list[tuple[Formula, Formula]] = []
    for when, held in scope.worlds(test):
        scope.held = held
        answers.append((when, _TESTS[test.name](test, scope)))
        if _match(test) in {"matches", "regex"}:
            scope.match(all_of(answers[-1]), _captured(test, scope))
    never = [when for when, holds in answers if holds == FALSE]
    if all(holds in (TRUE, FALSE) for _, holds in answers) and len(never) * 2 < len(answers):
        return negated(any_way(never))
    return any_way(all_of(answer) for answer in answers)


def _captured(test: Command, scope: Scope) -> list[str | None]:
    where = {"currentdate": "date-part", "date": "date-part"}.get(test.name, "header-names")
    fields = scope.texts(test.arguments.get(where, []))
    return captured(test, _match(test), fields, _part(test), scope.texts(test.arguments["key-list"]))


def _parts(test: Command, scope: Scope, goes_on: Callable[[Formula], Formula]) -> list[Formula]:
    """The tests in another, each asked for messages for which those before it ``goes_on``: a match that is not tried
    leaves the variables as they were (RFC 5229 section 3.2).
    """
    guard, parts = scope.guard, []
    for one in test.tests:
        parts.append(formula(one, scope))
        scope.guard = (*scope.guard, goes_on(parts[-1]))
    scope.guard = guard
    return parts


_COMBINATIONS: dict[str, Callable[[Command, Scope], Formula]] = {
    "not": lambda test, scope: negated(formula(test.tests[0], scope)),
    "allof": lambda test, scope: all_of(_parts(test, scope, lambda part: part)),
    "anyof": lambda test, scope: any_of(_parts(test, scope, negated)),
}


def _sound(leaf: Formula) -> Formula:
    """The formula; raises Untranslatable where our loader does not take its condition."""
    if isinstance(leaf, Leaf):
        patterns.sound({"flag": "seen", "sees": "all", "when": {leaf.key: leaf.value}})
    return leaf


# --- what a text must be -----------------------------------------------------------------------------------------


def _match(test: Command) -> str:
    return next((one for one in _MATCHES if f":{one}" in test.tags), "is")


def _texts(test: Command, keys: Sequence[str], *, whole: bool = False) -> Any:
    """The value of a text condition for the keys: one, or an array of which any will do. Raises Untranslatable."""
    kind, comparator = _match(test), test.tags.get(":comparator", _CASEMAP)
    if comparator == "i;ascii-numeric":
        sign = "eq" if kind == "is" else test.tags.get(":value")
        if kind not in {"is", "value"} or sign is None:
            raise Untranslatable(f"i;ascii-numeric does not go with :{kind}")
        numbers = [patterns.number(key) for key in keys]
        return patterns.one_or_all([{"regex": patterns.number_as_regex(str(sign), one)} for one in numbers])
    if kind in {"value", "count"}:
        raise Untranslatable(f"there is no condition for :{kind} of texts")
    if comparator not in {_CASEMAP, "i;octet", "i;unicode-casemap"}:
        raise Untranslatable(f"the comparator {comparator} has no counterpart")
    if comparator == "i;octet":
        return patterns.one_or_all([_cased(kind, key) for key in keys])
    ways: dict[str, Callable[[str], Any]] = {
        "is": lambda key: patterns.just(key, whole=whole),
        "contains": patterns.containing,
        "matches": _glob,
        "regex": lambda key: {"regex": patterns.from_posix(key)},
    }
    return patterns.one_or_all([ways[kind](key) for key in keys])


def _cased(kind: str, key: str) -> Any:
    word = patterns.literal(key)
    if kind == "contains" and not key:
        return "*"
    ways: dict[str, Callable[[], str]] = {
        "is": lambda: f"^{word}$",
        "contains": lambda: word,
        "matches": lambda: patterns.glob_as_regex(key),
        "regex": lambda: patterns.from_posix(key),
    }
    return {"regex": patterns.cased(ways[kind]())}


def _glob(key: str) -> Any:
    """A key of :matches: our globs are the same, but for a backslash at the end, which is itself in Sieve."""
    ends = len(key) - len(key.rstrip("\\"))
    glob = key + "\\" if ends % 2 else key
    return glob if re.search(r"[*?]", re.sub(r"\\.", "", glob)) else {"matches": glob}


# --- header, address, envelope -----------------------------------------------------------------------------------


def _names(test: Command, scope: Scope) -> list[str]:
    names = scope.texts(test.arguments["header-names"])
    if ":index" in test.tags or ":last" in test.tags:
        raise Untranslatable("all header fields of a name are looked at; :index and :last have no counterpart")
    for name in names:
        if name.lower() in scope.edited:
            raise Untranslatable(f"the script changes {name} before it looks at it, and our rules look at what came")
    return names


def _count(test: Command, keys: Sequence[str], scope: Scope) -> list[str]:
    if test.tags.get(":comparator") != "i;ascii-numeric":
        scope.warn('counts are compared as numbers; as text, without i;ascii-numeric, "10" comes before "5"')
    sign = str(test.tags[":count"])
    signs = ["<", ">"] if sign == "ne" else [_SIGNS[sign]] if sign in _SIGNS else []
    if not signs:
        raise Untranslatable(f"there is no comparison {sign}")
    return [f"{one} {patterns.number(key)}" for key in keys for one in signs]


def _header(test: Command, scope: Scope) -> Formula:
    names, keys = _names(test, scope), scope.texts(test.arguments["key-list"])
    if ":count" in test.tags:
        if len(names) > 1:
            raise Untranslatable("the fields of several names are not counted together")
        return _sound(Leaf("header-count", {names[0]: patterns.one_or_all(_count(test, keys, scope))}))
    return any_of(part for name in names for part in _field(name, test, keys, scope))


def _field(name: str, test: Command, keys: Sequence[str], scope: Scope) -> Iterator[Formula]:
    lower = name.lower()
    value = _texts(test, keys, whole=lower == "subject")
    yield _sound(Leaf(lower, value) if lower in {"subject", "message-id"} else Leaf("header", {name: value}))
    if lower.startswith("x-spam-"):
        yield from spam_line(lower, _match(test), keys, scope.warn)


def _exists(test: Command, scope: Scope) -> Formula:
    return all_of(_sound(Leaf("header", {name: "*"})) for name in _names(test, scope))


def _part(test: Command) -> str:
    return next((one for one in ("localpart", "domain", "user", "detail") if f":{one}" in test.tags), "all")


def _address(test: Command, scope: Scope) -> Formula:
    names, keys = _names(test, scope), scope.texts(test.arguments["key-list"])
    if ":count" in test.tags:
        if {name.lower() for name in names} != {"to", "cc"}:
            raise Untranslatable("only the addresses of To and Cc together are counted")
        return _sound(Leaf("recipients", patterns.one_or_all(_count(test, keys, scope))))
    value = _of_part(test, keys, scope)
    return any_of(_sound(_addresses_in(name, value)) for name in names)


def _addresses_in(name: str, value: Any) -> Formula:
    lower = name.lower()
    return Leaf(lower, value) if lower in _ADDRESSES else Leaf("header", {name: {"address": value}})


def _of_part(test: Command, keys: Sequence[str], scope: Scope) -> Any:
    """The value of an address condition. Raises Untranslatable."""
    part = _part(test)
    if part == "all":
        return _texts(test, keys)
    if part == "localpart":
        return _local_part(test, keys)
    if part in {"user", "detail"}:
        scope.warn('the detail of an address may stand behind a "-", too, in Dovecot behind "+" alone')
    return {part: _texts(test, keys)}


def _local_part(test: Command, keys: Sequence[str]) -> Any:
    kind = _match(test)
    if kind == "regex" or ":comparator" in test.tags:
        bare = [re.sub(r"\([^()]*\)", "", key[:-1]) for key in keys]  # a sign in brackets ends there
        if any("$" in key[:-1].replace("\\$", "") or "|" in rest for key, rest in zip(keys, bare, strict=True)):
            raise Untranslatable("this pattern for the part before the @ has no counterpart")
        cased = patterns.cased if test.tags.get(":comparator") == "i;octet" else str
        if kind != "regex":
            words = [patterns.literal(key) for key in keys]
            made = [f"^{word}@" if kind == "is" else f"{word}.*@" for word in words]
        else:
            made = [
                f"{patterns.from_posix(key[:-1])}@" if key.endswith("$") else f"{patterns.from_posix(key)}.*@"
                for key in keys
            ]
        return patterns.one_or_all([{"regex": cased(one)} for one in made])
    globs: dict[str, Callable[[str], str]] = {"is": patterns.glob, "contains": patterns.containing, "matches": str}
    if kind not in globs:
        raise Untranslatable(f"there is no condition for :{kind} of the part before the @")
    return patterns.one_or_all([f"{globs[kind](key)}@*" for key in keys])


def _envelope(test: Command, scope: Scope) -> Formula:
    names, keys = scope.texts(test.arguments["header-names"]), scope.texts(test.arguments["key-list"])
    if unknown := [name for name in names if name.lower() not in _ENVELOPE]:
        raise Untranslatable(f'the envelope has no "{unknown[0]}" here; there are from and to')
    if ":count" in test.tags:
        raise Untranslatable("an envelope is not counted")
    value = _of_part(test, keys, scope)
    return any_of(_sound(Leaf(_ENVELOPE[name.lower()], value)) for name in names)


# --- size, body, time --------------------------------------------------------------------------------------------


def _size(test: Command, _scope: Scope) -> Formula:
    return Leaf("size", f"{'>' if ':over' in test.tags else '<'} {patterns.in_units(test.arguments['limit'])}")


def _body(test: Command, scope: Scope) -> Formula:
    keys = scope.texts(test.arguments["key-list"])
    if _match(test) == "is":
        raise Untranslatable("a body that is just one text is not asked for; :contains is")
    if ":raw" in test.tags:
        scope.warn("the body is looked at as decoded text, not as it was sent")
    if ":content" in test.tags:
        kinds = scope.texts(test.tags[":content"])
        if any(kind.lower().partition("/")[0] != "text" for kind in kinds):
            raise Untranslatable(f"only the text of a message is looked at, not its {', '.join(kinds) or 'parts'}")
        if kinds != ["text"]:
            scope.warn("all text of a message is looked at, plain and HTML")
    return _sound(Leaf("body", _texts(test, keys, whole=True)))


def _date(test: Command, scope: Scope) -> Formula:
    name = scope.text(test.arguments["header-name"]).lower()
    if name not in {"date", "received"} or ":index" in test.tags or ":last" in test.tags:
        raise Untranslatable("only the Date field and the top Received field are read as times")
    if name == "date":
        return _moment(test, scope, {})
    return all_of([Leaf("header", {"Received": "*"}), _moment(test, scope, {"of": "arrival"})])


def _moment(test: Command, scope: Scope, said: dict[str, Any]) -> Formula:
    if ":originalzone" in test.tags:
        raise Untranslatable("the sender's own time zone is not asked for")
    if ":zone" in test.tags:
        said = {**said, "zone": sieve_times.zone(scope.text(test.tags[":zone"]))}
    kind = _match(test)
    part, keys = scope.text(test.arguments["date-part"]).lower(), scope.texts(test.arguments["key-list"])
    if test.name == "currentdate" and kind == "matches" and keys == ["*"]:
        return TRUE
    if kind not in {"is", "value"}:
        raise Untranslatable(f"there is no condition for :{kind} of a time")
    sign = "eq" if kind == "is" else str(test.tags[":value"])
    if part == "time" and sign in {"gt", "le"} and any(key.endswith(":00") for key in keys):
        scope.warn("times are compared by the minute")
    if sign == "ne":
        # A message without a date has none that differs either.
        return all_of([sieve_times.any_date(said), negated(sieve_times.moment(part, "eq", keys, said))])
    return _sound(sieve_times.moment(part, sign, keys, said))


# --- what came before, and what scanners say ---------------------------------------------------------------------


def _duplicate(test: Command, scope: Scope) -> Formula:
    if {":handle", ":uniqueid"}.intersection(test.tags):
        raise Untranslatable("copies are known by their Message-ID alone; :handle and :uniqueid have no counterpart")
    if scope.text(test.tags.get(":header", "message-id")).lower() != "message-id":
        raise Untranslatable("copies are known by their Message-ID alone")
    if ":last" not in test.tags:
        scope.warn("each copy begins the time anew, as with :last")
    # Pigeonhole's sieve_duplicate_default_period.
    return _sound(Leaf("duplicate", f"{test.tags[':seconds']} s" if ":seconds" in test.tags else "12 h"))


def _spam(test: Command, scope: Scope) -> Formula:
    value = patterns.number(scope.text(test.arguments["value"]))
    sign = "eq" if _match(test) == "is" else str(test.tags.get(":value", ""))
    if test.tags.get(":comparator", "i;ascii-casemap") == "i;octet" or sign not in {"ge", "gt"}:
        raise Untranslatable("only spamtest :value with ge or gt has a counterpart: `spam`, `score`")
    if sign == "ge" and value <= 1:
        raise Untranslatable("spamtest's 0 and 1, not tested and not spam, have no counterpart")
    scope.warn(
        f"the server scales its points to 0 to {'100' if ':percent' in test.tags else '10'}; "
        "`spam = true` is what the scanner takes for spam, write `score` for more or less"
    )
    return Leaf("spam", True)


def _virus(test: Command, scope: Scope) -> Formula:
    value = patterns.number(scope.text(test.arguments["value"]))
    sign = "eq" if _match(test) == "is" else str(test.tags.get(":value", ""))
    # RFC 5235 section 3.1: 4 may be a virus, 5 is one.
    if (sign, value) not in {("eq", 5), ("ge", 4), ("ge", 5), ("gt", 3), ("gt", 4), ("eq", 4)}:
        raise Untranslatable("only a virustest for 4 or 5, a virus, has a counterpart")
    scope.warn('rules see a virus only where the site says `[clamd] on-virus = "mark"`')
    return Leaf("virus", True)


def _has_flag(test: Command, scope: Scope) -> Formula:
    if "variable-list" in test.arguments or ":count" in test.tags or _match(test) != "is":
        raise Untranslatable("only hasflag :is of the message's own flags has a counterpart")
    flags = [flag for text in scope.texts(test.arguments["list-of-flags"]) for flag in text.split()]
    return any_of(scope.flags.get(flag.lower(), FALSE) for flag in flags)


# --- what is known without a message -----------------------------------------------------------------------------


def _string(test: Command, scope: Scope) -> Formula:
    """RFC 5229 section 5, of values that are known. Where it names no comparator, case matters: Pigeonhole (tried with
    0.5.19) takes i;octet here, though RFC 5228 section 2.7.3 says i;ascii-casemap.
    """
    kind = _match(test)
    comparator = test.tags.get(":comparator", "i;octet")
    if kind not in {"is", "contains", "matches"} or comparator not in {_CASEMAP, "i;octet"}:
        raise Untranslatable(f"texts are not compared with :{kind} before there is a message")
    sources = [scope.said(raw) for raw in _listed(test.arguments["source"])]
    keys = scope.texts(test.arguments["key-list"])
    alike = [_compared(kind, source, key, cased=comparator == "i;octet") for source in sources for key in keys]
    return TRUE if any(alike) else FALSE


def _compared(kind: str, source: str, key: str, *, cased: bool) -> bool:
    if found := placeholders(source):
        if key == {"matches": "*"}.get(kind, "") and (kind != "is" or "subject" not in found):
            return kind != "is"
        raise Untranslatable(f"what {{{found[0]}}} is depends on the message")
    patterns_of: dict[str, Callable[[str], str]] = {
        "is": lambda text: f"^{patterns.literal(text)}$",
        "contains": patterns.literal,
        "matches": patterns.glob_as_regex,
    }
    case = re.NOFLAG if cased else re.IGNORECASE | re.ASCII
    return re.search(patterns_of[kind](key), put(source, {}), case | re.DOTALL) is not None


def _ihave(test: Command, scope: Scope) -> Formula:
    """RFC 5463 section 4."""
    if unknown := [one for one in scope.texts(test.arguments["capabilities"]) if one.lower() not in _EVERYWHERE]:
        raise Untranslatable(f'whether the server has "{unknown[0]}" is not known')
    return TRUE


_EVERYWHERE = frozenset(
    "fileinto copy mailbox imap4flags envelope subaddress relational regex body date reject vacation variables include "
    "index encoded-character comparator-i;ascii-numeric comparator-i;octet comparator-i;ascii-casemap".split()
)
"""Extensions that Pigeonhole has without being told to."""

_TESTS: dict[str, Callable[[Command, Scope], Formula]] = {
    "true": lambda _test, _scope: TRUE,
    "false": lambda _test, _scope: FALSE,
    "header": _header,
    "address": _address,
    "envelope": _envelope,
    "exists": _exists,
    "size": _size,
    "body": _body,
    "date": _date,
    "currentdate": lambda test, scope: _moment(test, scope, {"of": "arrival"}),
    "duplicate": _duplicate,
    "spamtest": _spam,
    "virustest": _virus,
    "hasflag": _has_flag,
    "string": _string,
    "ihave": _ihave,
}
