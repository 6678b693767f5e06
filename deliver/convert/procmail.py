"""procmail's rc files (procmailrc(5)) as rules of ours."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from deliver.convert import patterns, procmail_patterns, procmail_places, procmail_variables, weights
from deliver.convert.accepted import checked
from deliver.convert.flow import Does, Flow, Lost, Statement
from deliver.convert.formulas import FALSE, TRUE, Formula, Guard, Leaf, all_of, any_of, literals, negated, table
from deliver.convert.model import Conversion, Reported, lines_of_dos
from deliver.convert.patterns import Untranslatable, sound
from deliver.convert.procmail_source import (
    Assignment,
    Condition,
    Foreign,
    Item,
    Recipe,
    expanded,
    read,
    words,
)
from deliver.values import INBOX

PREFACE = (
    'Each rule has sees = "all": procmail knows no scanner, so its recipes are asked about spam, too. Without that',
    "line a rule leaves spam to the spam folder. What no rule places goes into the inbox, or as spam into that folder.",
)

_TOOK = "; the rules below are now asked about the mail that it took, too"

_SCANNERS = re.compile(
    r"(?:\S*/)?(?:spamc|spamassassin|bogofilter|rspamc|dspam|sa-learn|clamassassin|clamfilter\S*)(?:\s|$)"
)
_LDA = re.compile(r"(?:\S*/)?(?:deliver|dovecot-lda)((?:\s+-[adfm]\s+\S+|\s+-[ek])*)")
_DEDUPE = re.compile(r"(?:\S*/)?formail\s+-D\s*[0-9]+\s+\S+")
_FORMAIL = re.compile(r"(?:\S*/)?formail\s+-([AaiI])\s*(?:\"([^\"$`\\]*)\"|'([^']*)')")

_MOST_WEIGHED = 8
"""Conditions with weights in one recipe that are reckoned out: each doubles the cases."""


def convert(text: str) -> Conversion:
    """An rc file as rules. Raises Wrong where it is none."""
    items, comments = read(text)
    script = _Script()
    script.take(items, (), (FALSE, FALSE))
    script.finish(text.count("\n") + 1)
    flow = Flow(script.statements)
    rules, refused = checked(flow.rules)
    reported = [*lines_of_dos(text, "procmail"), *script.reported, *refused]
    reported += [
        Reported(one.line, script.sources[id(one)], "no message comes to it", warning=True) for one in flow.unreached
    ]
    reported += [Reported(one.line, script.sources[id(one)], _BLURRED, warning=True) for one in flow.blurred]
    left = (*flow.comments, *script.left, *comments)
    return Conversion(rules, tuple(sorted(dict.fromkeys(reported))), comments=left, preface=PREFACE)


_BLURRED = "a header line is on every place of a message; procmail has it only on what it stores later"


class _Script:
    """Reads items one after the other, with the way that leads to each.

    ``statements`` are what they do, each with its source in ``sources``; ``reported`` what no rule stands for; ``left``
    are comments that nothing followed.
    """

    def __init__(self) -> None:
        self.statements: list[Statement] = []
        self.sources: dict[int, str] = {}
        self.reported: list[Reported] = []
        self.left: list[str] = []
        # Known without a delivery: where the home is does not matter.
        self._values: dict[str, str | None] = {"HOME": procmail_places.HOME, "MAILDIR": procmail_places.HOME}
        self._values |= dict.fromkeys(("DEFAULT", "ORGMAIL"), procmail_places.ORIGINAL)
        self._stopped: list[Formula] = []
        self._clones: list[list[Formula]] = []  # of blocks with "c": where the second procmail has ended
        self._default = procmail_places.ORIGINAL
        self._warnings: list[str] = []
        self._done: Formula = TRUE
        self._lost = Lost()

    def take(self, items: Sequence[Item], guard: Guard, before: tuple[Formula | None, Formula | None]) -> None:
        """The items of one block. ``before`` is what A and E find at its beginning; None is what nobody knows."""
        last, previous = before
        self._done = TRUE
        for index, one in enumerate(items):
            self.left += one.comments
            follows = bool(items[index + 1 :]) or bool(guard)
            if isinstance(one, Foreign):
                self._report(one.line, one.source, "procmail passes it over, too")
            elif isinstance(one, Assignment):
                self._assign(one, guard, follows=follows)
            else:
                holds = self._recipe(one, guard, last, previous, follows=follows)
                flags = set(one.flags)
                if not flags & {"A", "a"}:
                    last = holds
                if "E" in flags:
                    previous = None if None in (previous, holds) else any_of([previous or FALSE, holds or FALSE])
                else:
                    previous = holds

    def finish(self, line: int) -> None:
        """What becomes of mail that no recipe took."""
        try:
            folder = self._folder(self._default)
        except Untranslatable as error:
            self._report(line, f"DEFAULT={self._default}", f"{error}; what no rule places goes into the inbox")
            return
        if folder != INBOX:
            does = Does.STORE if folder else Does.DROP
            self._add(Statement(does, (), line, folder, sees="ham"), f"DEFAULT={self._default}")

    def _report(self, line: int, source: str, reason: str, *, warning: bool = False) -> None:
        comments, self.left = (tuple(self.left), []) if not warning else ((), self.left)
        self.reported.append(Reported(line, source, reason, warning, comments))

    def _add(self, statement: Statement, source: str) -> None:
        self.sources[id(statement)] = source
        self.statements.append(statement)

    # --- variables -------------------------------------------------------------------------------------------------

    def _lookup(self, name: str) -> str | None:
        return self._values.get(name)

    def _value(self, word: str) -> str | None:
        return expanded(word, self._lookup)

    def _assign(self, one: Assignment, guard: Guard, *, follows: bool) -> None:
        value = None if one.value is None else self._value(one.value)
        if one.name in procmail_variables.STEERS:
            self._report(
                one.line,
                one.source,
                procmail_variables.STEERS[one.name] + (_TOOK if follows and one.name != "TRAP" else ""),
            )
            if one.name != "TRAP":
                self._lost.note(guard, one.line)
            return
        if one.value is None:
            self._values[one.name] = ""
            return
        if one.name == "DEFAULT" and (guard or self.statements or value is None):
            self._report(one.line, one.source, "where mail goes that no recipe takes is settled at the beginning")
            return
        self._values[one.name] = value
        if one.name == "DEFAULT":
            self._default = value or procmail_places.ORIGINAL
        elif one.name in procmail_variables.OWN:
            self._report(one.line, one.source, "a setting of procmail itself; nothing here needs it", warning=True)
        elif value is None and one.name != "MAILDIR":
            self._report(one.line, one.source, "what it stands for depends on the message, or on a program")

    # --- recipes ---------------------------------------------------------------------------------------------------

    def _recipe(
        self, one: Recipe, guard: Guard, last: Formula | None, previous: Formula | None, *, follows: bool
    ) -> Formula | None:
        """Take one recipe; returns when it is carried out, None where nobody knows."""
        flags = set(one.flags)
        self._warnings = []
        took = _TOOK if follows and "f" not in flags else ""
        try:
            if unknown := flags - set("HBDAaEehbfcwWir"):
                raise Untranslatable(f"there is no flag {''.join(sorted(unknown))}")
            if "e" in flags:
                raise Untranslatable("a delivery that fails is tried again by the mail server")
            if (flags & {"A", "a"} and last is None) or ("E" in flags and previous is None):
                raise Untranslatable("it depends on a recipe above it that no rule stands for")
            holds = all_of(
                [
                    (last or FALSE) if flags & {"A", "a"} else TRUE,
                    self._done if "a" in flags else TRUE,
                    negated(previous or FALSE) if "E" in flags else TRUE,
                    self._conditions(one.conditions, flags),
                ]
            )
        except Untranslatable as error:
            self._report(one.line, one.source, f"{error}{took}")
            if "f" not in flags:
                self._lost.note(guard, one.line)
            self._forget(one.block or ())
            return None
        self._done = TRUE
        if one.action.startswith("|") and _DEDUPE.fullmatch(self._command(one.action)):
            self._duplicates(one, flags, (*guard, holds))
            return holds
        way = (*guard, *(part for part in literals((holds,)) if part not in literals(guard)))
        if one.block is not None:
            self._told(one)
            self._block(one, way, clone="c" in flags)
            return holds
        try:
            self._act(one, flags, way)
        except Untranslatable as error:
            self._report(one.line, one.source, f"{error}{took if 'c' not in flags else ''}")
            if not flags & {"c", "f"}:
                self._lost.note(way, one.line)
            self._told(one)
            return holds
        self._told(one)
        return holds

    def _told(self, one: Recipe) -> None:
        for text in dict.fromkeys(self._warnings):
            source = one.source if one.block is None else one.source.partition("{")[0].rstrip()
            self._report(one.line, source, text, warning=True)
        self._warnings = []

    def _block(self, one: Recipe, way: Guard, *, clone: bool) -> None:
        known = dict(self._values)
        if clone:
            self._clones.append([])
        self.take(one.block or (), way, (TRUE, TRUE))
        self.left += one.inner
        if clone:
            gone = self._clones.pop()
            if all_of(way) not in gone and negated(any_of(gone)) != FALSE:
                self._warn("a copy that nothing in the block takes would go the way of the message a second time", one)
            self._values = known
        changed = [name for name, value in self._values.items() if known.get(name) != value]
        self._values = {**known, **dict.fromkeys(changed)}

    def _warn(self, text: str, one: Recipe) -> None:
        self._warnings.append(text)
        self._told(one)

    def _forget(self, items: Iterable[Item]) -> None:
        """Nobody knows what variables are after a block that is not converted."""
        for one in items:
            if isinstance(one, Assignment):
                self._values[one.name] = None
            elif isinstance(one, Recipe):
                self._forget(one.block or ())

    # --- conditions ------------------------------------------------------------------------------------------------

    def _conditions(self, conditions: Sequence[Condition], flags: set[str]) -> Formula:
        """All conditions of a recipe. Raises Untranslatable."""
        plain: list[Formula] = []
        weighed: list[tuple[int, Formula]] = []
        for one in conditions:
            found = re.fullmatch(r"(-?[0-9]*\.?[0-9]+)\s*\^\s*(-?[0-9]*\.?[0-9]+)\s*(.*)", one.text, re.DOTALL)
            if not found:
                plain.append(self._condition(one.text, flags))
                continue
            if float(found[2]) != 0 or re.match(r"!?\s*[<>?]", found[3]):
                raise Untranslatable("weights that grow with each match, a size or a program have no counterpart")
            holds = self._condition(found[3], flags) if found[3] else TRUE
            weighed.append((round(float(found[1]) * 1000), holds))
        if len(weighed) > _MOST_WEIGHED:
            raise Untranslatable(f"more than {_MOST_WEIGHED} weights are not reckoned out")
        return all_of([*plain, weights.more_than_nothing(weighed) if weighed else TRUE])

    def _condition(self, text: str, flags: set[str]) -> Formula:
        text = text.strip()
        if text.startswith("!"):
            return negated(self._condition(text[1:], flags))
        if text.startswith("$"):
            inside = text[1:].strip().replace('"', '\\"')
            value = expanded(f'"{inside}"', self._lookup)
            if value is None:
                raise Untranslatable("what its variables are depends on the message")
            return self._condition(value, flags)
        if text.startswith("?"):
            raise Untranslatable("rules ask no program")
        if text in {"", ".*"}:
            return TRUE  # found everywhere
        if found := re.fullmatch(r"([<>])\s*([0-9]+)", text):
            return Leaf("size", f"{found[1]} {patterns.in_units(int(found[2]))}")
        if text.startswith(("<", ">")):
            raise Untranslatable("a size is a number of bytes")
        if found := re.match(r"([A-Za-z_][A-Za-z0-9_]*)\s*\?\?\s*", text):
            if found[1] not in {"H", "B", "HB", "BH"}:
                raise Untranslatable(f"the variable {found[1]} is not looked at")
            return self._condition(text[found.end() :], (flags - {"H", "B"}) | set(found[1]))
        parts: list[Formula] = []
        if "B" not in flags or "H" in flags:
            parts.append(procmail_patterns.in_header(text, cased="D" in flags, warn=self._warnings.append))
        if "B" in flags:
            self._warnings.append("the body is looked at as decoded text, without attachments")
            parts.append(procmail_patterns.in_body(text, cased="D" in flags))
        holds = any_of(parts)
        sound({"flag": "seen", "sees": "all", "when": table(holds)})
        return holds

    # --- actions ---------------------------------------------------------------------------------------------------

    def _act(self, one: Recipe, flags: set[str], way: Guard) -> None:
        """What the action line does. Raises Untranslatable."""
        if len(flags & {"h", "b"}) == 1 and "f" not in flags:
            raise Untranslatable(
                f"only whole messages are delivered, not the {'header' if 'h' in flags else 'body'} alone"
            )
        if "f" in flags:
            self._filter(one, way)
            return
        copies = "c" in flags
        made = self._deliveries(one.action)
        if not copies and any(does is Does.DROP for does, _ in made):
            self._lost.check(way)
        comments, self.left = tuple(self.left), []
        here = (*way, *self._stopped)
        gone = self._clones[-1] if self._clones else None
        if gone is not None:
            here = (*here, *(negated(one) for one in gone))
        for index, (does, target) in enumerate(made):
            placing = not copies and gone is None
            if does is not Does.DROP or placing:
                kind = does if placing else Does.COPY
                if does is Does.STORE and index < len(made) - 1:
                    kind = Does.COPY
                self._add(Statement(kind, here, one.line, target, comments=comments), one.source)
                comments = ()
        self.left = [*comments, *self.left]
        if copies:
            return
        if gone is not None:
            gone.append(all_of(way))
            return
        self._add(Statement(Does.STOP, here, one.line), one.source)
        self._stopped.append(negated(all_of(way)))

    def _duplicates(self, one: Recipe, flags: set[str], way: Guard) -> None:
        """formail -D: a second message of the same Message-ID is lost there, or with "c" left to a recipe with "a"."""
        again = Leaf("duplicate", True)
        self._warn("Message-IDs are remembered for a week, not as many as fit into a file", one)
        if "c" in flags:
            self._done = again
            return
        self._done = FALSE  # where formail ends well, the message is lost and nothing below is asked
        here = (*way, again, *self._stopped)
        comments, self.left = tuple(self.left), []
        self._add(Statement(Does.DROP, here, one.line, comments=comments), one.source)
        self._add(Statement(Does.STOP, here, one.line), one.source)
        self._stopped.append(negated(all_of((*way, again))))

    def _deliveries(self, action: str) -> list[tuple[Does, str]]:
        """Where an action line delivers to. Raises Untranslatable."""
        if action.startswith("!"):
            return [(Does.SEND, address) for address in procmail_places.addresses(action[1:], self._value)]
        if action.startswith("|"):
            if found := _LDA.fullmatch(self._command(action)):
                named = re.search(r"\s-m\s+(\S+)", found[1])
                value = self._value(named[1]) if named else INBOX
                if value is None:
                    raise Untranslatable("the folder's name depends on the message, or on a program")
                return [(Does.STORE, procmail_places.named(re.split(r"[./]", value)))]
            raise Untranslatable("it gives the message to a program; the site may name one in [programs], for `pipe`")
        if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", action):
            raise Untranslatable("what a program says is not kept in variables")
        paths = [self._value(word) for word in words(action)]
        if not paths or None in paths:
            raise Untranslatable("the folder's name depends on the message, or on a program")
        folders = [self._folder(path) for path in paths if path is not None]
        return [(Does.STORE if folder else Does.DROP, folder) for folder in folders]

    def _command(self, action: str) -> str:
        """A program with its arguments, in one line; its own name may stand in a variable."""
        command = re.sub(r"\\\n\s*", " ", action[1:]).strip()
        program = next(iter(words(command)), "")
        return (self._value(program) or program) + command[len(program) :]

    def _folder(self, path: str) -> str:
        return procmail_places.folder(path, self._values.get("MAILDIR"), self._default)

    def _filter(self, one: Recipe, way: Guard) -> None:
        """A program that the message goes through. Raises Untranslatable."""
        command = self._command(one.action)
        if _SCANNERS.match(command):
            self._report(
                one.line,
                one.source,
                "the site's configuration says what scans mail; its answer is asked with `spam`, `score` and `virus`",
                warning=True,
            )
            return
        found = _FORMAIL.fullmatch(command)
        if not found:
            raise Untranslatable("rules change a message by add-header, remove-header and tag-subject alone")
        name, colon, value = (found[2] or found[3] or "").partition(":")
        said: dict[str, Any] = {"add-header": {name.strip(): value.strip().replace("{", "{{").replace("}", "}}")}}
        if not colon:
            raise Untranslatable("formail wants a header field here")
        if not value.strip():
            said = {"remove-header": name.strip()}
        elif found[1] == "I":
            said["remove-header"] = name.strip()
        if found[1] in "ai":
            self._warnings.append("the line is added, whether or not one of its name is there, which stays")
        sound(said)
        comments, self.left = tuple(self.left), []
        self._add(Statement(Does.ADD, (*way, *self._stopped), one.line, table=said, comments=comments), one.source)
