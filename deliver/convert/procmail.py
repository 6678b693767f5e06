"""procmail's rc files (procmailrc(5)) as rules of ours."""

import re
from collections.abc import Callable, Iterable, Sequence

from deliver.convert import (
    patterns,
    procmail_commands,
    procmail_match,
    procmail_patterns,
    procmail_places,
    procmail_variables,
    weights,
)
from deliver.convert.accepted import checked
from deliver.convert.flow import Does, Flow, Lost, Statement
from deliver.convert.formulas import (
    FALSE,
    TRUE,
    Formula,
    Guard,
    Leaf,
    all_of,
    any_of,
    excluded,
    leaves,
    literals,
    negated,
    table,
)
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
from deliver.convert.variables import Variables
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
_ONLY_PRINTS = re.compile(r"`\s*(?:\S*/)?(?:formail|date|echo|hostname|whoami|id|pwd|basename|expr)\b")
_ANSWERS = re.compile(r"\bformail\s(?:.*\s)?-[a-zA-Z]*r|(?:^|/)vacation(?:\s|$)")

_UNKNOWN_FOLDER = "the folder's name depends on the message, or on a program"

_NAMES = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)|\b([A-Za-z_][A-Za-z0-9_]*+)(?=\s*\?\?)")

_WEIGHT = r"-?[0-9]{0,9}\.?[0-9]{1,9}"

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


_FAILED_SCAN = "what happens where the scanner fails is a setting: [spamd] on-failure"

_BLURRED = "a header line is on every place of a message; procmail has it only on what it stores later"


def _is_end(item: Item) -> bool:
    """Whether procmail ends here and has put the message nowhere: by a HOST that is none, or in /dev/null."""
    if isinstance(item, Assignment):
        return item.name == "HOST" and not item.value
    if not isinstance(item, Recipe) or item.conditions:
        return False
    return item.action == "/dev/null" and not set(item.flags) & set("cfaAEe")


def _is_scanner(above: Item, command: Callable[[str], str]) -> bool:
    """Whether the recipe above asks a scanner, which the site's configuration does here."""
    return isinstance(above, Recipe) and "f" in above.flags and bool(_SCANNERS.match(command(above.action)))


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
        self._branches = Variables()
        self._stopped: list[Formula] = []
        self._clones: list[list[Formula]] = []  # of blocks with "c": where the second procmail has ended
        self._edited: list[tuple[Guard, set[str], int]] = []  # header fields that a recipe has changed, and its line
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
                if self._refuses(one, items[index + 1 :], guard):
                    return
                self._assign(one, guard, follows=follows)
            elif "e" in one.flags and index and _is_scanner(items[index - 1], self._command):
                self._report(one.line, one.source, _FAILED_SCAN, warning=True)
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

    def _refuses(self, one: Assignment, behind: Sequence[Item], guard: Guard) -> bool:
        """Whether the filter ends here and the message is nowhere: by HOST, or in /dev/null behind an EXITCODE.

        procmailrc(5): with a HOST that is not this one procmail ends; with EXITCODE, as that says.
        """
        coded = one.name == "EXITCODE" and one.value is not None
        code = (self._value(one.value or "") or "") if coded else "0"
        last = behind[0] if coded and behind else one
        if not guard or not _is_end(last) or not code.isdigit() or code == "75":
            return False
        source = one.source if last is one else f"{one.source}\n{last.source}"
        try:
            self._lost.check(guard)
        except Untranslatable as error:
            self._report(one.line, source, str(error))
            self._lost.note(guard, one.line)
            return True
        comments, self.left = (*self.left, *(() if last is one else last.comments)), []
        does = Does.DROP if int(code) == 0 else Does.REFUSE
        here = self._here(guard)
        if self._clones:
            self._clones[-1].append(all_of(guard))  # only the copy ends here
        else:
            self._add(Statement(does, here, one.line, comments=tuple(comments)), source)
            self._add(Statement(Does.STOP, here, one.line), source)
            self._stopped.append(negated(all_of(guard)))
        return True

    def _lookup(self, name: str) -> str | None:
        return self._values.get(name)

    def _value(self, word: str) -> str | None:
        return expanded(word, self._lookup, lambda command: procmail_commands.said(command, self._value))

    def _assign(self, one: Assignment, guard: Guard, *, follows: bool) -> None:
        why = "what it stands for depends on the message, or on a program"
        try:
            value = None if one.value is None else self._value(one.value)
        except Untranslatable as error:
            value, why = None, str(error)
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
            self._branches.assign(one.name, guard, None if self._clones else "")
            return
        if one.name == "DEFAULT" and (guard or self.statements or value is None):
            self._report(one.line, one.source, "where mail goes that no recipe takes is settled at the beginning")
            return
        self._values[one.name] = value
        self._branches.assign(one.name, guard, None if self._clones else value)
        if one.name == "DEFAULT":
            self._default = value or procmail_places.ORIGINAL
        elif one.name in procmail_variables.OWN:
            self._report(one.line, one.source, "a setting of procmail itself; nothing here needs it", warning=True)
        elif value is None and one.name != "MAILDIR":
            # Whoever uses it is reported; a program may do more than print.
            does = "`" in one.value and not _ONLY_PRINTS.search(one.value)
            self._report(one.line, one.source, why, warning=not does)

    # --- recipes ---------------------------------------------------------------------------------------------------

    def _recipe(
        self, one: Recipe, guard: Guard, last: Formula | None, previous: Formula | None, *, follows: bool
    ) -> Formula | None:
        """Take one recipe; returns when it is carried out, None where nobody knows.

        What depends on a variable that blocks above have set is taken once for each of its values.
        """
        asked = "" if one.block is not None else " ".join([one.action, *(each.text for each in one.conditions)])
        found_names = (used or looked for used, looked in _NAMES.findall(asked))
        names = {name for name in found_names if self._values.get(name, "") is None}
        try:
            worlds = self._branches.worlds(names, guard)
        except Untranslatable:
            worlds = []
        if len(worlds) < 2 or any(value is None for _, held in worlds for value in held.values()):
            return self._taken(one, guard, last, previous, follows=follows)
        found: list[Formula | None] = []
        comments = self.left
        for when, held in worlds:
            self._values |= held
            holds = self._taken(one, (*guard, when), last, previous, follows=follows)
            found.append(None if holds is None else all_of([when, holds]))
        self.left = [text for text in self.left if text not in comments]
        self._values |= dict.fromkeys(names)
        known = [holds for holds in found if holds is not None]
        return any_of(known) if len(known) == len(found) else None

    def _taken(
        self, one: Recipe, guard: Guard, last: Formula | None, previous: Formula | None, *, follows: bool
    ) -> Formula | None:
        flags = set(one.flags)
        self._warnings = []
        self._match: str | None = ""
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
            self._check_edited((*guard, holds))
        except Untranslatable as error:
            self._report(one.line, one.source, f"{error}{took}")
            if "f" not in flags:
                self._lost.note(guard, one.line)
            self._forget(one.block or ())
            return None
        if self._match != "":
            self._values["MATCH"] = self._match
        self._done = TRUE
        if holds == FALSE:
            self._report(one.line, one.source, "no message comes to it", warning=True)
            return holds
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

    def _check_edited(self, way: Guard) -> None:
        """Raises Untranslatable where a condition looks at a header field that a recipe above has changed."""
        asked: set[str] = set()
        for leaf in (leaf for part in way for leaf in leaves(part)):
            asked |= {name.lower() for name in leaf.value} if leaf.key == "header" else {leaf.key}
        for guard, names, line in self._edited:
            if names & asked and not excluded((*guard, *way, *self._stopped)):
                raise Untranslatable(f"it looks at what the recipe in line {line} has changed; rules see it as it came")

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
                self._branches.assign(one.name, (), None)
            elif isinstance(one, Recipe):
                self._forget(one.block or ())

    # --- conditions ------------------------------------------------------------------------------------------------

    def _conditions(self, conditions: Sequence[Condition], flags: set[str]) -> Formula:
        """All conditions of a recipe. Raises Untranslatable."""
        plain: list[Formula] = []
        weighed: list[tuple[int, Formula]] = []
        for one in conditions:
            text = one.text.strip()
            if re.match(r"\$\s*\$\{?\w+\}?\s*\^", text):  # a weight in a variable
                text = self._substituted(text[1:])
            found = re.fullmatch(rf"({_WEIGHT})\s*\^\s*({_WEIGHT})\s*(.*)", text, re.DOTALL)
            if not found:
                plain.append(self._condition(text, flags))
                continue
            if float(found[2]) != 0 or re.match(r"!?\s*[<>?]", found[3]):
                raise Untranslatable("weights that grow with each match, a size or a program have no counterpart")
            holds = self._condition(found[3], flags) if found[3] else TRUE
            weighed.append((round(float(found[1]) * 1000), holds))
        if len(weighed) > _MOST_WEIGHED:
            raise Untranslatable(f"more than {_MOST_WEIGHED} weights are not reckoned out")
        return all_of([*plain, weights.more_than_nothing(weighed) if weighed else TRUE])

    def _substituted(self, text: str) -> str:
        """What stands behind "$", which is read as within double quotes: a quote in it ends them."""
        value = expanded(f'"{text.strip()}"', self._lookup)
        if value is None or procmail_variables.of_message(value):
            raise Untranslatable("what its variables are depends on the message")
        return value

    def _condition(self, text: str, flags: set[str]) -> Formula:
        text = text.strip()
        if text.startswith("!"):
            return negated(self._condition(text[1:], flags))
        if text.startswith("$"):
            return self._condition(self._substituted(text[1:]), flags)
        if text.startswith("?"):
            listed = '; addresses can stand in one of [lists], asked by in = "NAME"' if "grep" in text else ""
            raise Untranslatable(f"rules ask no program{listed}")
        if text in {"", ".*"}:
            return TRUE  # found everywhere
        if found := re.fullmatch(r"([<>])\s*([0-9]+)", text):
            return Leaf("size", f"{found[1]} {patterns.in_units(int(found[2]))}")
        if text.startswith(("<", ">")):
            raise Untranslatable("a size is a number of bytes")
        if found := re.match(r"([A-Za-z_][A-Za-z0-9_]*)\s*\?\?\s*", text):
            if found[1] not in {"H", "B", "HB", "BH"}:
                value = self._values.get(found[1])
                if value is not None and not procmail_variables.of_message(value):
                    return TRUE if procmail_patterns.is_in(value, text[found.end() :], cased="D" in flags) else FALSE
                self._match = procmail_match.narrowed(value or "", text[found.end() :])
                if self._match is None:
                    raise Untranslatable(f"the variable {found[1]} is not looked at")
                return TRUE
            return self._condition(text[found.end() :], (flags - {"H", "B"}) | set(found[1]))
        if text.startswith("^^rom"):
            return FALSE  # SpamAssassin's example: a "From " line that had lost its first letter
        if taken := procmail_match.parted(text):
            self._match = None if "B" in flags else procmail_match.matched(*taken)
            text = "".join(taken)
        parts: list[Formula] = []
        if "B" not in flags or "H" in flags:
            parts.append(procmail_patterns.in_header(text, cased="D" in flags, warn=self._warnings.append))
        if "B" in flags and (files := patterns.attached(text)) is not None:
            self._warnings.append("attachments are asked for by their names, those in archives as well")
            parts.append(files)
        elif "B" in flags:
            self._warnings.append("the body is looked at as decoded text, without attachments")
            parts.append(procmail_patterns.in_body(text, cased="D" in flags))
        holds = any_of(parts)
        sound({"flag": "seen", "sees": "all", "when": table(holds)})
        return holds

    def _here(self, way: Guard) -> Guard:
        """What holds where a recipe is carried out: the message has not been placed, nor the copies around it."""
        return (*way, *self._stopped, *(negated(one) for gone in self._clones for one in gone))

    # --- actions ---------------------------------------------------------------------------------------------------

    def _act(self, one: Recipe, flags: set[str], way: Guard) -> None:
        """What the action line does. Raises Untranslatable."""
        if one.action.startswith("|") and "f" not in flags and _ANSWERS.search(self._command(one.action)):
            raise Untranslatable("an answer is a rule's reply: [rule.reply] with text and every")
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
        here = self._here(way)
        gone = self._clones[-1] if self._clones else None
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
                    raise Untranslatable(_UNKNOWN_FOLDER)
                return [(Does.STORE, procmail_places.named(re.split(r"[./]", value)))]
            raise Untranslatable("it gives the message to a program; the site may name one in [programs], for `pipe`")
        if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", action):
            raise Untranslatable("what a program says is not kept in variables")
        paths = [self._value(word) for word in words(action)]
        if not paths or None in paths:
            raise Untranslatable(_UNKNOWN_FOLDER)
        if any(procmail_variables.of_message(path) for path in paths if path):
            self._warnings.append("what comes from a message stands in the folder's name in small letters")
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
        said, warnings = procmail_commands.edits(command, self._value)
        self._warnings += warnings
        sound(said)
        comments, self.left = tuple(self.left), []
        here = (*way, *self._stopped)
        names = [*said.get("add-header", {}), *patterns.listed(said.get("remove-header", []))]
        names += ["subject"] if "tag-subject" in said else []
        self._edited.append((here, {name.lower() for name in names}, one.line))
        self._add(Statement(Does.ADD, here, one.line, table=said, comments=comments), one.source)
