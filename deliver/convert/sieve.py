"""Sieve scripts (RFC 5228 and its extensions) as rules of ours."""

import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from deliver.convert import sieve_source
from deliver.convert.accepted import checked
from deliver.convert.flow import AT_THE_END, Does, Flow, Lost, Statement
from deliver.convert.formulas import FALSE, TRUE, Formula, Guard, all_of, any_of, excluded, literals, negated
from deliver.convert.model import Conversion, Converted, Reported
from deliver.convert.patterns import Untranslatable, sound
from deliver.convert.sieve_match import SMALL
from deliver.convert.sieve_source import Command
from deliver.convert.sieve_tests import Scope, formula
from deliver.convert.variables import braced
from deliver.rules.load import LONGEST_LINE
from deliver.rules.model import is_inbox
from deliver.rules.placeholders import names as placeholders
from deliver.rules.placeholders import put
from deliver.values import INBOX

PREFACE = (
    'Each rule has sees = "all": Sieve knows no scanner, so its rules are asked about spam, too. Without that line a',
    "rule leaves spam to the spam folder. What no rule places goes into the inbox, or as spam into that folder.",
)

_TAKING = frozenset("fileinto redirect discard reject ereject stop keep pipe include".split())
_IDLE = frozenset({"keep", "stop", "require"})
"""Commands without which nothing is lost where no rule can stand for them."""

_SYSTEM_FLAGS = {"\\seen": "seen", "\\flagged": "flagged", "\\answered": "answered", "\\draft": "draft"}


def convert(text: str) -> Conversion:
    """A script as rules. Raises Wrong where it is no Sieve."""
    statements, comments = sieve_source.read(text)
    script = _Script(Scope(_required(statements), _matches(statements)))
    script.take(statements, ())
    flow = Flow(script.statements)
    rules, refused = checked([_named(rule) for rule in flow.rules])
    reported = [*script.reported, *refused]
    reported += [
        Reported(one.line, one.source, "no message comes to it", warning=True) for one in script.of(flow.unreached)
    ]
    reported += [Reported(one.line, one.source, _BLURRED, warning=True) for one in script.of(flow.blurred)]
    left = (*flow.comments, *script.left, *comments)
    return Conversion(rules, tuple(sorted(reported)), comments=left, preface=PREFACE)


_BLURRED = "flags and header lines are on every place of a message; the script has them only on some"


def _named(rule: Converted) -> Converted:
    """The rule with the name that Roundcube keeps in a comment, "# rule:[name]", as its own.

    The last one counts: those above it stood before rules that are switched off.
    """
    names = [one for one in rule.comments if one.startswith("rule:[") and one.endswith("]")]
    name = names[-1][len("rule:[") : -1] if names else ""
    if not name or AT_THE_END in rule.comments or not name.isprintable() or len(name) > LONGEST_LINE:
        return rule
    comments = list(rule.comments)
    del comments[len(comments) - 1 - comments[::-1].index(names[-1])]
    return rule._replace(table={"name": name, **rule.table}, comments=tuple(comments))


def _required(statements: Iterable[sieve_source.Statement]) -> frozenset[str]:
    """The extensions that the script asks for (RFC 5228 section 3.2)."""
    words = [word for one in statements if one.name == "require" for word in re.findall(r'"([^"]*)"', one.words)]
    return frozenset(word.lower() for word in words)


def _matches(statements: Iterable[sieve_source.Statement]) -> frozenset[str]:
    """The match variables anywhere in the script."""
    return frozenset(name for one in statements for name in re.findall(r"\$\{([0-9])\}", one.source))


class _Made(NamedTuple):
    """What an action does: one part of a Statement. ``alone`` is a mark for the places of this action alone."""

    does: Does
    target: str = ""
    table: dict[str, Any] = {}  # noqa: RUF012 # never changed
    alone: bool = False


# RFC 5229 section 4.1: those of the higher precedence first.
_MODIFIERS: dict[str, Callable[[str], str]] = {
    ":lower": str.lower,
    ":upper": str.upper,
    ":lowerfirst": lambda text: text[:1].lower() + text[1:],
    ":upperfirst": lambda text: text[:1].upper() + text[1:],
    ":quotewildcard": lambda text: re.sub(r"[*?\\]", r"\\\g<0>", text),
    ":length": lambda text: str(len(text)),
}


class _Script:
    """Reads statements one after the other, with the way that leads to each.

    ``statements`` are what they do, ``reported`` what no rule stands for; ``left`` are comments that nothing followed.
    """

    def __init__(self, scope: Scope) -> None:
        self.statements: list[Statement] = []
        self.reported: list[Reported] = []
        self.left: list[str] = []
        self._sources: dict[int, sieve_source.Statement] = {}
        self._scope = scope
        self._replies: list[Guard] = []
        self._lost = Lost()

    def of(self, statements: Iterable[Statement]) -> list[sieve_source.Statement]:
        """Where they come from, each once."""
        found: list[sieve_source.Statement] = []
        for one in statements:
            source = self._sources[id(one)]
            if source not in found:
                found.append(source)
        return found

    def take(self, statements: Sequence[sieve_source.Statement], guard: Guard) -> None:
        """The statements of one block."""
        otherwise: Formula | None = TRUE  # None: nobody knows when an else comes
        for index, one in enumerate(statements):
            follows = bool(statements[index + 1 :]) or bool(guard)
            if one.name in {"if", "elsif", "else"}:
                otherwise = self._branch(one, guard, TRUE if one.name == "if" else otherwise, follows=follows)
                continue
            self.left += one.comments
            if one.name == "require":
                continue
            if one.block is not None:
                self._report(one, f'there is no counterpart to a block of "{one.name}"', guard, follows=follows)
                continue
            try:
                self._action(one, sieve_source.command(one.words), guard)
            except Untranslatable as error:
                self._report(one, str(error), guard, follows=follows)

    def _branch(
        self, one: sieve_source.Statement, guard: Guard, otherwise: Formula | None, *, follows: bool
    ) -> Formula | None:
        """One branch of an if; returns when the branches behind it are asked, None where nobody knows."""
        self.left += one.comments
        holds: Formula = TRUE
        self._scope.warnings = []
        self._scope.guard = guard if otherwise is None else (*guard, otherwise)
        if otherwise is None:
            self._report(one, "it is asked only where the branches above it are not taken", guard, follows=follows)
            return None
        if one.name != "else":
            try:
                holds = formula(sieve_source.test(one.words[len(one.name) :].strip()), self._scope)
            except Untranslatable as error:
                self._report(one, str(error), guard, follows=follows)
                return None
        for words in self._scope.warnings:
            self.reported.append(Reported(one.line, one.words, words, warning=True))
        known = literals(guard)
        way = (*guard, *(part for part in literals((otherwise, holds)) if part not in known))
        self.take(one.block or (), way)
        self.left += one.inner
        return all_of([otherwise, negated(holds)])

    def _report(self, one: sieve_source.Statement, reason: str, guard: Guard, *, follows: bool) -> None:
        if _TAKING.intersection(_names(one)):
            self._lost.note(guard, one.line)
            reason += "; the rules below are now asked about the mail that it took, too" if follows else ""
        comments, self.left = tuple(self.left), []
        self.reported.append(Reported(one.line, one.source, reason, comments=comments))
        tried = self._scope.matches if re.search(":(?:matches|regex)", one.source, re.IGNORECASE) else ()
        for name in {*_set_in(one), *tried}:
            self._scope.variables.assign(name, guard, None)

    # --- actions ---------------------------------------------------------------------------------------------------

    def _action(self, one: sieve_source.Statement, command: Command, guard: Guard) -> None:
        """Raises Untranslatable."""
        if command.name not in self._ACTIONS:
            raise Untranslatable(f'there is no action for "{command.name}"')
        self._scope.warnings = []
        made: list[tuple[Guard, _Made]] = []
        self._scope.guard = guard
        for when, held in self._scope.worlds(command):
            self._scope.held, self._scope.guard = held, (*guard, when)
            # What the guard says and these values say already needs no saying.
            way = (*guard, *self._scope.stopped)
            if when != TRUE:
                wider = [part for part in literals(way) if not excluded((when, negated(part)))]
                way = tuple(literals((*wider, when)))
            made += [(way, statement) for statement in self._ACTIONS[command.name](self, command, way)]
        for way, statement in made:
            if statement.does in {Does.DROP, Does.REFUSE}:
                self._lost.check(way)
            entry = Statement(statement.does, way, one.line, statement.target, statement.table, tuple(self.left))
            self.left = []
            self._sources[id(entry)] = one
            self.statements.append(entry)
        for (_, statement), entry in zip(reversed(made), reversed(self.statements), strict=False):
            if statement.alone:
                entry.until = len(self.statements)
        for words in self._scope.warnings:
            self.reported.append(Reported(one.line, one.source, words, warning=True))
        if command.name == "stop":
            self._scope.stopped.append(negated(all_of(guard)))

    def _fileinto(self, command: Command, way: Guard) -> list[_Made]:
        folder = _folder(self._scope.said(command.arguments["mailbox"]))
        sound({"file": folder})
        if placeholders(folder):
            self._scope.warn('a value in a folder\'s name is one level of small letters, digits and "_+=@-"')
        does = Does.COPY if ":copy" in command.tags else Does.STORE
        return [*self._own_flags(command, way), _Made(does, folder)]

    def _keep(self, command: Command, way: Guard) -> list[_Made]:
        return [*self._own_flags(command, way), _Made(Does.STORE, INBOX)]

    def _own_flags(self, command: Command, way: Guard) -> list[_Made]:
        """The flags that are for this place alone, as far as no other place would get them."""
        if ":flags" not in command.tags:
            return []
        if any(not excluded((*way, when)) for when in self._scope.flags.values()):
            self._scope.warn(":flags stands in place of flags that were set before, and ours are only added")
        try:
            marks = _marks(self._scope.texts(command.tags[":flags"]))
        except Untranslatable as error:
            self._scope.warn(f"it has no flags: {error}")
            return []
        return [_Made(Does.ADD, table={"flag": mark}, alone=True) for mark in marks]

    def _redirect(self, command: Command, _way: Guard) -> list[_Made]:
        address = self._scope.text(command.arguments["address"])
        found = re.fullmatch(r"[^<>]*<([^<>]+)>\s*", address)
        address = found[1].strip() if found else address.strip()
        sound({"forward": address})
        return [_Made(Does.COPY if ":copy" in command.tags else Does.SEND, address)]

    def _discard(self, _command: Command, _way: Guard) -> list[_Made]:
        return [_Made(Does.DROP)]

    def _stop(self, _command: Command, _way: Guard) -> list[_Made]:
        return [_Made(Does.STOP)]

    def _reject(self, command: Command, way: Guard) -> list[_Made]:
        reason = " ".join(self._scope.text(command.arguments["text"]).split())
        text = reason.encode("ascii", "replace").decode()[:LONGEST_LINE].strip()
        if re.match(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)", text) and not text.startswith("5"):
            raise Untranslatable("what goes back to a sender has a code that begins with 5")
        if text != reason:
            self._scope.warn(f"the answer to a sender is one line of ASCII, of {LONGEST_LINE} characters")
        if any(one.does is not Does.STOP and not excluded((*way, *one.guard)) for one in self.statements):
            self._scope.warn(
                "Sieve gives up where a message is refused and stored as well; ours goes back all the same"
            )
        if text:
            sound({"bounce": text})
        return [_Made(Does.REFUSE, text)]

    def _set_flag(self, command: Command, way: Guard) -> list[_Made]:
        if "variable-name" in command.arguments:
            raise Untranslatable("flags in a variable have no counterpart")
        flags = [flag for text in self._scope.texts(command.arguments["list-of-flags"]) for flag in text.split()]
        marks, names = _marks(flags), [flag.lower() for flag in flags]
        if command.name != "addflag":
            gone = names if command.name == "removeflag" else [one for one in self._scope.flags if one not in names]
            for name in gone:
                self._scope.flags[name] = all_of([self._scope.flags.get(name, FALSE), negated(all_of(way))])
            self._unflag({mark.lower() for mark in marks}, way, others=command.name == "setflag")
        if command.name == "removeflag":
            return []
        for name in names:
            self._scope.flags[name] = any_of([self._scope.flags.get(name, FALSE), all_of(way)])
        return [_Made(Does.ADD, table={"flag": mark}) for mark in marks]

    def _unflag(self, marks: Container[str], way: Guard, *, others: bool) -> None:
        """Take these marks, or all ``others``, from the message again: what is stored later has them no more."""
        for index, one in enumerate(self.statements):
            mark = one.table.get("flag")
            if mark is None or one.until is not None or excluded((*way, *one.guard)):
                continue
            if (mark.lower() in marks) is others:
                continue
            behind = self.statements[index:]
            if any(other.does in {Does.STORE, Does.COPY} and not excluded((*way, *other.guard)) for other in behind):
                one.until = len(self.statements)
            else:
                one.guard = (*one.guard, negated(all_of(part for part in literals(way) if part not in one.guard)))

    def _add_header(self, command: Command, _way: Guard) -> list[_Made]:
        name = self._scope.text(command.arguments["name"])
        table = {"add-header": {name: self._scope.said(command.arguments["value"])}}
        sound(table)
        if ":last" in command.tags:
            self._scope.warn("the line stands before the message, not behind its header")
        self._scope.edited |= {name.lower()}
        return [_Made(Does.ADD, table=table)]

    def _delete_header(self, command: Command, _way: Guard) -> list[_Made]:
        if {":index", ":last"}.intersection(command.tags) or "value" in command.arguments:
            raise Untranslatable("all lines of a name are removed, not those of one value or place")
        name = self._scope.text(command.arguments["name"])
        sound({"remove-header": name})
        self._scope.edited |= {name.lower()}
        return [_Made(Does.ADD, table={"remove-header": name})]

    def _vacation(self, command: Command, way: Guard) -> list[_Made]:
        if ":mime" in command.tags:
            raise Untranslatable("a reply is plain text; :mime has no counterpart")
        if any(not excluded((*way, *other)) for other in self._replies):
            raise Untranslatable("the first reply that is wanted is the one that goes out")
        reply: dict[str, Any] = {}
        if ":subject" in command.tags:
            reply["subject"] = self._scope.said(command.tags[":subject"])
        reply["text"] = self._scope.said(command.arguments["reason"])
        if ":days" in command.tags or ":seconds" in command.tags:
            reply["every"] = self._every(command)
        if ":addresses" in command.tags:
            reply["my-addresses"] = self._scope.texts(command.tags[":addresses"])
        if ":from" in command.tags:
            self._scope.warn("a reply comes from the address that the message was for; :from has no counterpart")
        if ":handle" in command.tags:
            self._scope.warn("who was answered is remembered for each text; :handle has no counterpart")
        sound({"reply": reply})
        self._replies.append(way)
        return [_Made(Does.ADD, table={"reply": reply})]

    def _every(self, command: Command) -> str:
        seconds = command.tags.get(":seconds")
        if seconds is not None:
            if not 3600 <= int(seconds) <= 90 * 86400:
                self._scope.warn("a sender is answered once in 1 h to 90 d")
            return f"{min(max(int(seconds), 3600), 90 * 86400)} s"
        days = min(max(int(command.tags[":days"]), 1), 90)
        if days != int(command.tags[":days"]):
            self._scope.warn("a sender is answered once in 1 h to 90 d")
        return f"{days} d"

    def _set(self, command: Command, _way: Guard) -> list[_Made]:
        value = self._scope.said(command.arguments["value"])
        if unknown := [tag for tag in command.tags if tag not in _MODIFIERS]:
            raise Untranslatable(f"{unknown[0]} is not reckoned")
        if found := placeholders(value):
            if set(command.tags) - {":lower"} or (command.tags and not SMALL.issuperset(found)):
                raise Untranslatable(f"{' '.join(command.tags)} is not reckoned of what comes of the message")
        else:
            text = put(value, {})
            for tag in sorted(command.tags, key=list(_MODIFIERS).index):
                text = _MODIFIERS[tag](text)
            value = braced(text)
        name = self._scope.text(command.arguments["name"]).lower()
        self._scope.variables.assign(name, self._scope.guard, value)
        return []

    _ACTIONS: ClassVar[dict[str, "Callable[[_Script, Command, Guard], list[_Made]]"]] = {
        "fileinto": _fileinto,
        "keep": _keep,
        "redirect": _redirect,
        "discard": _discard,
        "stop": _stop,
        "reject": _reject,
        "ereject": _reject,
        "setflag": _set_flag,
        "addflag": _set_flag,
        "removeflag": _set_flag,
        "addheader": _add_header,
        "deleteheader": _delete_header,
        "vacation": _vacation,
        "set": _set,
    }


def _names(one: sieve_source.Statement) -> Iterable[str]:
    yield one.name
    for inner in one.block or ():
        yield from _names(inner)


def _set_in(one: sieve_source.Statement) -> Iterable[str]:
    """Variables to which a statement, or one in its block, would give a value."""
    if one.name == "set" and (found := re.search(r'"([A-Za-z_]\w*)"', one.words)):
        yield found[1].lower()
    for inner in one.block or ():
        yield from _set_in(inner)


def _folder(name: str) -> str:
    """A folder of ours for a mailbox of an IMAP server, whose levels are parted by "." or "/"."""
    if is_inbox(name):
        return INBOX
    levels = [level for level in re.split(r"[./]", name) if level]
    if levels and is_inbox(levels[0]) and len(levels) > 1:
        del levels[0]
    return ".".join(levels)


def _marks(flags: Sequence[str]) -> list[str]:
    """The values of `flag` for IMAP flags. Raises Untranslatable."""
    marks = []
    for flag in dict.fromkeys(one for text in flags for one in text.split()):
        known = _SYSTEM_FLAGS.get(flag.lower())
        if known is None and flag.startswith("\\"):
            raise Untranslatable(f"there is no flag {flag}")
        marks.append(known or (flag if flag.startswith("$") else f"keyword:{flag}"))
    if marks:
        sound({"flag": marks})
    return marks
