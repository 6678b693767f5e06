"""A filter of maildrop's as rules of ours: every way through the file is followed, and each delivery becomes a rule.

What surely holds where a delivery stands is its rule's condition. `to` ends the walk as our placing actions do, so that
a rule need not say what those above it have placed. Where part of a condition is unknown, its delivery is reported and
the rules below are asked as if it had not been there, which the report says.
"""

import sys

from deliver.convert import maildrop_commands as commands
from deliver.convert import maildrop_values as values
from deliver.convert import maildrop_webmail
from deliver.convert.formulas import negated, untold
from deliver.convert.maildrop_commands import Effect
from deliver.convert.maildrop_expressions import ENVIRONMENT, Reader, assigned, statements
from deliver.convert.maildrop_logic import SPAM, surely, unknowns
from deliver.convert.maildrop_parse import (
    Bare,
    Block,
    Command,
    Deliver,
    Guarded,
    If,
    Loop,
    Operation,
    Parsed,
    Pattern,
    Statement,
    Text,
    parse,
)
from deliver.convert.maildrop_pcre import CannotSay
from deliver.convert.maildrop_rules import Drafts
from deliver.convert.maildrop_values import EMPTY, Imported, Mystery, Value, known
from deliver.convert.maildrop_ways import State, merged, more_untold
from deliver.convert.model import Conversion, lines_of_dos

_DEEP = 20_000
"""Calls in each other: for DEEPEST blocks and brackets and LONGEST_CHAIN branches of one `if`."""

_UNTOLD_CODE = "how it ends is known only when it runs"


def convert(text: str) -> Conversion:
    """The rules for a filter file of maildrop's. Raises Wrong where maildrop would refuse the file."""
    before = sys.getrecursionlimit()
    # A long chain of elsif lies in itself as deep as it is long. Calls of Python take no C stack since 3.11.
    sys.setrecursionlimit(max(before, _DEEP))
    try:
        parsed = parse(text)
        structured = maildrop_webmail.convert(text, parsed)
        made = structured or _Walk(parsed, text.splitlines()).conversion()
        return made._replace(reported=(*lines_of_dos(text, "maildrop"), *made.reported))
    finally:
        sys.setrecursionlimit(before)


class _Walk:
    def __init__(self, parsed: Parsed, lines: list[str]) -> None:
        self._block = parsed.block
        self._reader = Reader(parsed.block)
        self._out = Drafts(lines, parsed.comments)
        self._ifs: list[int] = []
        self._maildir: Value = EMPTY
        self._understood = True  # whether a rule stands for the delivery in work
        self._said = ""  # by echo, for a sender whose message goes back

    def conversion(self) -> Conversion:
        for state in self._run(self._block, [State(((),), {})]):
            default = self._get(state, "DEFAULT")
            self._place(state, self._block.end, default, final=True, implied=True)
        self._out.reader_notes(self._reader.notes)
        return self._out.conversion(site=self._reader.site)

    # --- statements ----------------------------------------------------------------------------------------------

    def _run(self, statement: Statement, states: list[State]) -> list[State]:
        if not states:
            return []
        match statement:
            case Block():
                for one in statement.body:
                    states = self._run(one, states)
            case If():
                states = [after for state in states for after in self._if(statement, state)]
            case Deliver():
                states = [after for state in states for after in self._deliver(statement, state)]
            case Command():
                states = [after for state in states for after in self._command(statement, state)]
            case Bare():
                states = [after for state in states for after in self._bare(statement, state)]
            case Guarded():
                return self._run(statement.body, states)
            case Loop():
                states = [self._loop(statement, state) for state in states]
        return merged(states, statement.end, self._reader.matters)

    def _if(self, statement: If, state: State) -> list[State]:
        condition, captured = self._reader.formula(statement.condition, state.variables, statement.line)
        after: list[State] = []
        self._out.spans[statement.line] = (statement.line, max(statement.then.end, statement.head))
        if statement.then == Block(statement.head, statement.head, ()):
            why = "with an empty line or a comment behind the condition, maildrop does what follows for every message"
            self._out.report(statement.line, statement.head, why, warning=True)
        self._ifs.append(statement.line)
        doubts = state.doubts
        if unknowns(condition) and any(map(_delivers, statements(statement.then))):
            doubts = (*doubts, statement.line)
        missed = self._out.missed
        then = state.under(condition)
        if then:
            then = then._replace(variables={**then.variables, **captured})
            after = self._run(statement.then, [then])
        if unknowns(condition) and then and not after:
            # Its messages are gone in the original. Here they stay, which is reported where they would have gone.
            condition = surely(condition)
        otherwise = state.under(negated(condition))
        if otherwise:
            otherwise = otherwise._replace(doubts=doubts)
            if then and not after and missed == self._out.missed and not untold(condition):
                otherwise = otherwise._replace(paths=state.paths)  # what is not here has been placed
            after += self._run(statement.otherwise, [otherwise]) if statement.otherwise else [otherwise]
        self._ifs.pop()
        after = merged(after, statement.end, self._reader.matters)
        if len(after) == 1 and not more_untold(after[0], state):
            # What is not here has been placed, so that the rules below need not leave it out.
            after = [after[0]._replace(paths=state.paths, doubts=tuple(dict.fromkeys((*doubts, *after[0].doubts))))]
        return after

    def _bare(self, statement: Bare, state: State) -> list[State]:
        value = statement.value
        if isinstance(value, Operation) and value.operator == "=":
            return [self._assign(statement, state, value)]
        if isinstance(value, Pattern):
            _, captured = self._reader.formula(value, state.variables, statement.line)
            return [state._replace(variables={**state.variables, **captured})]
        if isinstance(value, Text) and len(value.parts) == 1 and value.parts[0][0] == "`":
            effect = self._reader.command(value.parts[0][1], state.variables, statement.line)
            if effect.seen:
                self._out.mark_last("seen")
            elif effect.trouble:
                self._trouble(state, statement, effect.trouble)
            self._tell(statement, effect)
            return [state.with_value("RETURNCODE", effect.status)]
        return [state]

    def _assign(self, statement: Bare, state: State, value: Operation) -> State:
        name = known(self._reader.value(value.left, state.variables, statement.line)) or ""
        if not self._reader.matters(name) and name != "MAILDIR":
            return state
        new = self._reader.value(value.right, state.variables, statement.line)
        status = self._reader.last_status
        if name == "MAILDIR" and self._maildir == EMPTY:
            self._maildir = new
        if name == "KEYWORDS":
            why = 'keywords are not set: write flag = "keyword:NAME" into the rules, where Dovecot knows the name'
            self._out.report(statement.line, statement.end, why, warning=True)
        if name == "MAILDROP_OLD_REGEXP":
            self._reader.old = known(new) not in ("", "0")
        if status is not None:
            state = state.with_value("RETURNCODE", status)
        return state.with_value(name, new)

    def _loop(self, statement: Loop, state: State) -> State:
        why = f"maildrop repeats this ({statement.word}), and rules have no loops"
        inside = list(statements(statement.body))
        if any(isinstance(one, Deliver) or (isinstance(one, Command) and one.word == "exit") for one in inside):
            self._out.spans[statement.line] = (statement.line, statement.end)
            self._trouble(state, statement, f"{why}; such mail goes on to the rules below")
            state = state._replace(doubts=(*state.doubts, statement.line))
        for name in assigned(statement.body):
            state = state.with_value(name, (Mystery(f"it is put together in a loop ({statement.word})"),))
        return state

    # --- what delivers -------------------------------------------------------------------------------------------

    def _get(self, state: State, name: str) -> Value:
        return self._reader.variable(name, state.variables)

    def _deliver(self, statement: Deliver, state: State) -> list[State]:
        self._understood = True
        target = self._reader.value(statement.target, state.variables, statement.line)
        first = target[0] if isinstance(target[0], str) else ""
        if first.lstrip()[:1] in ("|", "!"):
            target = self._reader.shell(statement.target, state.variables, statement.line)
            first = str(target[0])
            sign = first.lstrip()[0]
            rest = values.plain((first.lstrip()[1:].lstrip(), *target[1:]))
            effect = commands.pipe(rest) if sign == "|" else _forwarded(rest)
            self._effect(state, statement, effect, final=statement.final)
        else:
            self._place(state, statement.line, target, final=statement.final, statement=statement)
        if statement.final:
            if known(self._get(state, "EXITCODE")) not in ("", "0"):
                self._out.note(statement.line, statement.end, "ours ends with 0 where a message has been delivered")
            return []
        if self._understood:
            return [state.with_value("RETURNCODE", ("0",))]
        state = state._replace(doubts=(*state.doubts, statement.line))
        return [state.with_value("RETURNCODE", (Mystery(_UNTOLD_CODE),))]

    def _place(
        self,
        state: State,
        line: int,
        target: Value,
        *,
        final: bool,
        statement: Statement | None = None,
        implied: bool = False,
    ) -> None:
        end = statement.end if statement else line
        if known(target) == "/dev/null":
            if final:
                self._lose(state, line, end, ("discard", True))
            return
        try:
            found = values.place(target, self._get(state, "DEFAULT"), self._maildir)
            if implied and found.elsewhere:
                found = values.Place("INBOX")
            marks = self._marks(state)
        except CannotSay as error:
            self._keep(state, line, end, str(error), final=final)
            return
        if found.elsewhere:
            why = (
                f"{found.elsewhere} is no folder of the Maildir; ours files into {found.folder[: values.LONGEST_SHOWN]}"
            )
            self._out.note(line, end, why)
        if found.cased:
            self._out.report(
                line, end, "what comes from a message stands in the folder's name in small letters", warning=True
            )
        if marks and not final:
            self._out.note(line, end, "the marks of a copy stay with the message, wherever it goes then")
        place = ("file", found.folder)
        self._out.add(state.paths, self._ifs, line, place=place, copy=not final, flags=marks, implied=implied)

    def _marks(self, state: State) -> tuple[str, ...]:
        letters = known(self._get(state, "FLAGS"))
        if letters is None:
            raise CannotSay("FLAGS is known only when a message comes")
        names = {"D": "draft", "F": "flagged", "R": "answered", "S": "seen"}
        return tuple(names[letter] for letter in sorted(set(letters)) if letter in names)

    def _effect(self, state: State, statement: Statement, effect: Effect, *, final: bool) -> None:
        """What a command does with the message."""
        line = statement.line
        self._tell(statement, effect)
        if effect.trouble:
            self._keep(state, line, statement.end, effect.trouble, final=final)
        elif effect.places is not None:
            self._place(state, line, effect.places, final=final, statement=statement)
        elif effect.forwards:
            for address in effect.forwards:
                self._out.add(state.paths, self._ifs, line, place=("forward", address), copy=True)
            if final:
                self._out.end(state.paths, line)
        elif effect.bounces is not None and final:
            self._lose(state, line, statement.end, ("bounce", effect.bounces))
        elif final and not self._out.end(state.paths, line):
            self._lose(state, line, statement.end, ("discard", True))

    def _lose(self, state: State, line: int, end: int, place: tuple[str, object]) -> None:
        """Delete the message or give it back, unless the original may have kept it."""
        if state.doubts:
            lines = ", ".join(map(str, state.doubts))
            why = f"it would lose mail that the original may have kept: see line {lines}, which was not converted"
            self._out.unsaid(state.paths, line, end, why)
        else:
            self._out.add(state.paths, self._ifs, line, place=place)

    def _keep(self, state: State, line: int, end: int, why: str, *, final: bool) -> None:
        """What nothing stands for: the inbox takes the message, lest a rule below should delete it."""
        self._understood = False
        spam = all(SPAM in path for path in state.paths)
        goes = "such mail goes into the spam folder" if spam else "such mail stays in the inbox"
        if any(unknowns(part) for path in state.paths for part in path):
            goes = "such mail goes on to the rules below"
        self._out.unsaid(state.paths, line, end, f"{why}; {goes}" if final else why)
        if final and not spam:
            self._out.add(state.paths, self._ifs, line, place=("file", "INBOX"))

    def _command(self, statement: Command, state: State) -> list[State]:
        word, line = statement.word, statement.line
        argument = EMPTY
        if statement.argument is not None and word not in ("logfile", "unset", "import"):
            read = self._reader.shell if word == "xfilter" else self._reader.value
            argument = read(statement.argument, state.variables, line)
        if word == "exit":
            code = known(self._get(state, "EXITCODE"))
            effect = commands.ended(code, self._said) if code is not None else Effect(trouble=_UNTOLD_CODE)
            self._effect(state, statement, effect, final=True)
            return []
        if word == "echo":
            self._said = known(argument) or ""
        elif word in ("log", "logfile"):
            self._out.note_log(statement.line, statement.end)
        elif word in ("import", "unset"):
            return [self._named(statement, state, word)]
        elif word == "include":
            self._include(statement, state, argument)
        elif word == "system":
            self._trouble(state, statement, f"rules run no program of a user's: {commands.shown(argument)}")
        elif word == "xfilter":
            return [self._filter(statement, state, commands.xfilter(argument))]
        return [state]

    def _named(self, statement: Command, state: State, word: str) -> State:
        if statement.argument is None:
            return state
        name = known(self._reader.value(statement.argument, state.variables, statement.line)) or ""
        if word == "unset":
            return state.with_value(name, EMPTY)
        self._reader.site = self._reader.site or name == "HOST"
        return state.with_value(name, (Imported(name),)) if name in ENVIRONMENT else state

    def _include(self, statement: Command, state: State, argument: Value) -> None:
        file = commands.shown_all(argument)
        own = file.rpartition("/")[2] in (".mailfilter", "mailfilter")
        if own and isinstance(argument[0], values.Home | values.Mailbox):
            self._reader.site = True
            self._out.stage = "after"
            self._out.note(statement.line, statement.end, "the owner's rules are in mailfilter.toml beside the Maildir")
            return
        self._trouble(state, statement, f"convert {file} as well and put its rules here")

    def _filter(self, statement: Command, state: State, effect: Effect) -> State:
        self._tell(statement, effect)
        if effect.trouble:
            self._trouble(state, statement, effect.trouble)
        elif effect.places is not None:
            self._place(state, statement.line, effect.places, final=False, statement=statement)
        elif effect.headers or effect.removes or effect.tag:
            self._out.add(
                state.paths,
                self._ifs,
                statement.line,
                headers=effect.headers,
                removes=effect.removes,
                tag=effect.tag,
            )
            self._reader.changed |= {name.lower() for name in (*dict(effect.headers), *effect.removes)}
            self._reader.changed |= {"subject"} if effect.tag else set()
        for table, key, value in effect.settings:
            if table == "spamd" and key == "user":
                self._out.spamd(state.paths, str(value))
        return state.with_value("RETURNCODE", ("0",))

    def _tell(self, statement: Statement, effect: Effect) -> None:
        if effect.note:
            self._out.note(statement.line, statement.end, effect.note)
        for table, key, value in effect.settings:
            if table != "spamd":
                self._out.settings.setdefault(table, {})[key] = value

    def _trouble(self, state: State, statement: Statement, why: str) -> None:
        self._out.unsaid(state.paths, statement.line, statement.end, why)


def _delivers(statement: Statement) -> bool:
    return isinstance(statement, Deliver) or getattr(statement, "word", "") == "exit"


def _forwarded(rest: Value) -> Effect:
    addresses = (known(rest) or "").split()
    if not addresses:
        return Effect(trouble="the addresses are known only when a message comes")
    return Effect(forwards=tuple(addresses))
