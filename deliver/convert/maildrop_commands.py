"""The programs that maildrop's filters call: which of them are built in here, and what must be said of the others."""

import itertools
import re
import shlex
from typing import Any, NamedTuple

from deliver.convert import dates
from deliver.convert.formulas import FALSE, TRUE, Formula, Leaf, negated
from deliver.convert.maildrop_logic import unknown
from deliver.convert.maildrop_patterns import Capture
from deliver.convert.maildrop_values import (
    EMPTY,
    Captured,
    Home,
    Imported,
    Mailbox,
    Mystery,
    Placeholder,
    Status,
    Value,
    known,
    plain,
)
from deliver.convert.patterns import Untranslatable

FOLDERS = "folders are made and subscribed when mail is filed into them"
QUOTA = "the quota is kept by ours: maildirsize, else [quota]"
LEARNING = "nothing is reported or learned here: spamd learns by itself (bayes_auto_learn)"


class Effect(NamedTuple):
    """What a command is to a filter: its output, its exit code, and what to tell.

    ``trouble`` says why nothing stands for it, ``note`` what does. ``seen`` marks the copy before it as read.
    ``settings`` are for the site's configuration. ``places`` is a directory into which the command delivers,
    ``forwards`` addresses, ``bounces`` the text with which the message goes back; ``headers`` are lines to add and
    ``removes`` names to take out first, ``tag`` is put before the subject. ``drops`` is true of a command that takes
    the message and does nothing.
    """

    value: Value = EMPTY
    status: Value = ("0",)
    trouble: str = ""
    note: str = ""
    seen: bool = False
    settings: tuple[tuple[str, str, Any], ...] = ()
    places: Value | None = None
    forwards: tuple[str, ...] = ()
    bounces: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    removes: tuple[str, ...] = ()
    tag: str = ""
    drops: bool = False


_Words = list[Value]

_FIRST = 0xE000  # of the characters for private use, which stand for what is no text


def _words(command: Value) -> _Words | None:
    """The shell words of a command, signs such as "|" among them; None where a quote is not closed."""
    symbols = [part for part in command if not isinstance(part, str)]
    marks = iter(range(_FIRST, _FIRST + len(symbols)))
    text = "".join(part if isinstance(part, str) else chr(next(marks)) for part in command)
    reader = shlex.shlex(text, posix=True, punctuation_chars="&|;<>")
    reader.whitespace_split = True
    reader.commenters = ""
    try:
        found = list(reader)
    except ValueError:
        return None
    private = f"([{chr(_FIRST)}-{chr(0xF8FF)}])"
    return [
        plain(
            tuple(symbols[ord(one) - _FIRST] if one and one >= chr(_FIRST) else one for one in re.split(private, word))
        )
        for word in found
    ]


def _text(word: Value) -> str:
    return known(word) or ""


def _name(word: Value) -> str:
    return _text(word[-1:]).rpartition("/")[2]


def _parted(words: _Words) -> list[_Words]:
    """The simple commands, without redirections."""
    commands: list[_Words] = [[]]
    redirected = False
    for word in words:
        sign = _text(word)
        if re.fullmatch(r"[&|;]+", sign):
            commands.append([])
        elif re.fullmatch(r"[<>&]+", sign):
            redirected = True
        elif redirected:
            redirected = False
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def shown(command: Value) -> str:
    """The command for a sentence."""
    text = "".join(part if isinstance(part, str) else "..." for part in command)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- in backticks ------------------------------------------------------------------------------------------------

_MAKING = frozenset(
    "maildirmake maildrop-maildirmake maildirmake++ mkdir rmdir chown chmod chgrp touch subscribeIMAP.sh".split()
)
_IDLE = frozenset({"test", "[", "exit", "true", "false", ":", "echo", "sleep"})


def in_backticks(command: Value, line: int) -> Effect:
    """A command whose output and exit code a filter may use; the message is its input."""
    words = _words(command)
    if not words:
        return _mystery(command)
    first = _name(words[0])
    commands = _parted(words)
    names = [_name(one[0]) for one in commands]
    if first in ("test", "["):
        return _test(words, names, line)
    if first == "find" and ":2,S" in shown_all(command):
        return Effect(seen=True)
    if all(name in _MAKING or name in _IDLE for name in names) and _MAKING.intersection(names):
        return Effect(note=FOLDERS)
    if first == "echo" and re.search(r"subscri(?:ptions|bed)", shown_all(command)):
        return Effect(note=FOLDERS)
    if first in ("vuserinfo", "dumpvuser", "vdominfo"):
        return _user(words, first)
    if len(commands) == 1:
        if first == "pwd":
            return Effect(value=(Home(),))
        if first == "date":
            return Effect(value=_date(words))
        if first in ("reformail", "formail") and any(_text(word).startswith("-D") for word in words):
            return Effect(status=(Status(Leaf("duplicate", True)),), note="ours remembers the Message-IDs of a week")
        if first in ("reformail", "formail") and len(words) in (2, 3):
            option = re.fullmatch(r"-[cz]*x *([A-Za-z-]*):?", " ".join(map(_text, words[1:])))
            if option and option[1]:
                return Effect(value=(Captured(Capture(option[1].lower(), "value")),))
        if first in ("head", "cat") and "maildirsize" in shown_all(command):
            return Effect(value=(Mystery("it is the quota"),), note=QUOTA)
        if first == "mailbot":
            return Effect(trouble=_reply(words))
    return _mystery(command)


def shown_all(command: Value) -> str:
    """All of the command, with dots for what is no text."""
    return "".join(part if isinstance(part, str) else "..." for part in command)


def _mystery(command: Value) -> Effect:
    why = f"what the program prints and how it ends is known only when it runs: {shown(command)}"
    return Effect((Mystery(why),), (Mystery(why),), trouble=f"rules run no program of a user's: {shown(command)}")


def _test(words: _Words, names: list[str], line: int) -> Effect:
    """test(1), with what people write behind it: `&& exit 1 || exit 0`, `|| maildirmake ...`."""
    signs = [index for index, word in enumerate(words) if re.fullmatch(r"[&|;]+", _text(word))]
    end = signs[0] if signs else len(words)
    asked = [word for word in words[1:end] if _text(word) != "]"]
    inverted = bool(asked) and _text(asked[0]) == "!"
    asked = asked[inverted:]
    rest = [_text(word) for word in words[end:]]
    holds = _exists(asked, line)
    if rest in (["&&", "exit", "1", "||", "exit", "0"], ["||", "exit", "0", "&&", "exit", "1"]):
        inverted = not inverted
    elif any(name not in _MAKING and name not in _IDLE for name in names):
        return _mystery(tuple(part for word in words for part in (*word, " ")))
    elif rest:
        return Effect(note=FOLDERS)
    holds = negated(holds) if inverted else holds
    return Effect(status=("0",) if holds == TRUE else ("1",) if holds == FALSE else (Status(holds),))


def _exists(asked: _Words, line: int) -> Formula:
    """Folders and programs are there: ours makes the ones and needs none of the others."""
    if len(asked) != 2:
        return unknown("what test(1) is asked here is known only when it runs", line)
    option, path = _text(asked[0]), asked[1]
    if any(isinstance(part, Imported | Captured | Mystery) for part in path):
        return unknown("it asks for a file or folder whose name only a message brings", line)
    named = _name(path)
    if option in ("-d", "-x") or named in (".mailfilter", "mailfilter"):
        return TRUE
    return unknown(f"whether the file {shown(path)} is there is no condition", line)


def _user(words: _Words, first: str) -> Effect:
    """vpopmail's and vmailmgr's lookups: the mail server, or [users], has told the Maildir."""
    options = [_text(word) for word in words]
    if first == "dumpvuser":
        return Effect(value=(Mailbox(),))
    if "-Q" in options:
        command = ("quota", "command", [_text(words[0]) or "vuserinfo", "-Q", "{recipient}"])
        return Effect(value=(Mystery("it is the quota"),), note=QUOTA, settings=(command,))
    return Effect(value=(Home(),) if "-d" in options else EMPTY)


def _date(words: _Words) -> Value:
    form = next((_text(word)[1:] for word in words[1:] if _text(word).startswith("+")), "")
    if not form:
        return (Mystery("it is the date as date(1) writes it"),)
    try:
        parts = dates.parts(form)
    except Untranslatable as error:
        return (Mystery(str(error)),)
    return plain(tuple(Placeholder(part) if at % 2 else part for at, part in enumerate(parts)))


# --- xfilter -----------------------------------------------------------------------------------------------------

_ELSE = {
    "bogofilter": "X-Bogosity",
    "dspam": "X-DSPAM-Result",
    "dspamc": "X-DSPAM-Result",
    "rspamc": "X-Spam lines",
    "crm": "X-CRM114-Status",
    "spamprobe": "X-SpamProbe",
    "spambayes": "X-Spambayes-Classification",
    "sb_filter.py": "X-Spambayes-Classification",
}


def xfilter(command: Value) -> Effect:
    """A program that gives the message back changed."""
    words = _words(command) or [command]
    commands = _parted(words)
    first = _name(words[0])
    if len(commands) != 1:
        return Effect(trouble=f"rules run no program of a user's: {shown(command)}")
    if first in ("spamc", "spamassassin") and "-r" not in map(_text, words):
        user = [word for flag, word in itertools.pairwise(words) if _text(flag) == "-u"]
        whose = "{recipient}" if user and any(isinstance(part, Imported) for part in user[0]) else ""
        note = "spamd is asked before all rules: [spamd] in the site's configuration"
        return Effect(note=note, settings=(("spamd", "user", whose),))
    if first in ("spamassassin", "pyzor", "razor-report", "sa-learn"):
        return Effect(note=LEARNING)
    if first in ("deliverquota", "maildrop-deliverquota"):
        return _deliverquota(words)
    if first in ("reformail", "formail"):
        return _edited(words, command)
    if first == "cat" and len(words) == 1:
        return Effect()
    if first in _ELSE:
        lines = _ELSE[first]
        why = f"nobody runs {first} here; rules that look for {lines} need what a program in front of ours wrote"
        return Effect(trouble=why)
    return Effect(trouble=f"rules run no program of a user's: {shown(command)}")


def _deliverquota(words: _Words) -> Effect:
    """deliverquota(8): options, the directory, and perhaps a quota."""
    arguments = _arguments(words[1:], "w", "W")
    return Effect(places=arguments[0], note=QUOTA) if arguments else Effect(trouble="deliverquota has no directory")


def _arguments(words: _Words, *with_value: str) -> _Words:
    """The words that are no options; those options of which the letter is given take the next word."""
    left: _Words = []
    skip = False
    for word in words:
        option = _text(word)
        if skip:
            skip = False
        elif option.startswith("-") and len(option) > 1:
            skip = option[1:] in with_value
        else:
            left.append(word)
    return left


def _edited(words: _Words, command: Value) -> Effect:
    """reformail(1) and formail(1): lines that it adds, or puts in the place of others."""
    headers: list[tuple[str, str]] = []
    removes: list[str] = []
    tag = ""
    at = 1
    while at < len(words):
        head, *others = words[at]
        found = re.fullmatch(r"-([aAiIf])(.*)", head, re.DOTALL) if isinstance(head, str) else None
        if not found and not any(not isinstance(part, str) for part in words[at]):
            return Effect(trouble=f"rules cannot change a message in this way: {shown(command)}")
        option, rest = (found[1], plain((found[2], *others))) if found else ("", EMPTY)
        if rest == EMPTY and option != "f":
            at += 1
            rest = words[at] if at < len(words) else EMPTY
        at += 1
        if option == "f" and _text(rest) in ("0", ""):
            continue  # the "From " line is never stored
        if option == "I" and (said := _tag(rest)):
            tag = said
            continue
        name, colon, text = _text(rest).partition(":")
        if not colon or option not in ("A", "I") or (not text.strip() and option != "I"):
            return Effect(trouble=f"rules add and remove whole header lines that are known: {shown(command)}")
        if option == "I":
            removes.append(name)
        if text.strip():
            headers.append((name, text.strip()))
    return Effect(headers=tuple(headers), removes=tuple(removes), tag=tag)


def _tag(line: Value) -> str:
    """What a line "Subject: TAG" and the old subject puts before it; "" for any other line."""
    first, *others = line
    found = re.fullmatch(r"Subject:\s*(\S.*?)\s*", first, re.IGNORECASE) if isinstance(first, str) else None
    return found[1] if found and others == [Captured(Capture("subject", "value"))] else ""


# --- to "| ..." --------------------------------------------------------------------------------------------------


def pipe(command: Value) -> Effect:
    """A program that takes the message."""
    words = _words(command) or [command]
    commands = _parted(words)
    if not commands:
        return Effect(trouble="the command is empty")
    last = commands[-1]
    first, name = _name(commands[0][0]), _name(last[0])
    if name in ("sendmail", "forward") and all(_name(one[0]) in ("reformail", "formail") for one in commands[:-1]):
        addresses = [_text(word) for word in _arguments(last[1:], "f", "F", "r")]
        if "-t" not in map(_text, last) and addresses and all("@" in one for one in addresses):
            return Effect(forwards=tuple(addresses), note="" if len(commands) == 1 else "header lines are not added")
    if first == "mailbot":
        return Effect(trouble=_reply(words))
    if first == "vacation":
        return Effect(trouble="write the text that vacation(1) sends into a rule: [rule.reply] with text and every")
    if len(commands) > 1 and not {"sa-learn", "bogofilter", "spamassassin"}.intersection(map(_name, commands[-1][:1])):
        return _for_the_site(command, name)
    if name in ("deliverquota", "maildrop-deliverquota"):
        return _deliverquota(last)
    if name == "bouncesaying" and len(last) == 2:
        return Effect(bounces=_text(last[1]) or "The mailbox does not take this message")
    if name == "exit" and len(last) == 2:
        return ended(_text(last[1]), "")
    if name in ("sa-learn", "pyzor", "razor-report") or (name in ("bogofilter", "spamassassin") and len(last) > 1):
        return Effect(note=LEARNING)
    if name in ("true", ":") or (name == "cat" and "/dev/null" in shown_all(command)):
        return Effect(drops=True)
    return _for_the_site(command, name)


def _for_the_site(command: Value, name: str) -> Effect:
    short = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "program"
    how = f'the site names it under [programs], {short} = ["/path/of/{name}", ...], and the rule says pipe = "{short}"'
    return Effect(trouble=f"rules run only programs that the site names: {shown(command)}; {how}")


def _reply(words: _Words) -> str:
    """What to write in place of mailbot(1): its text is in a file of its own."""
    pairs = list(zip(map(_text, words), words[1:], strict=False))
    file = next((shown(word) for option, word in pairs if option in ("-t", "-m")), "its file")
    days = next((_text(word) for option, word in pairs if option == "-D"), "")
    every = f' and every = "{days} d"' if days.isdigit() and days != "0" else ""
    return f"mailbot(1) is a rule's reply: [rule.reply] with text = what is in {file}{every}"


_HARD = frozenset({"100", "64", "65", "70", "76", "77", "78", "112"})
"""Codes at which qmail-local gives the message back (qmail-local.c)."""


def ended(code: str, said: str) -> Effect:
    """What becomes of the message when the filter ends with this code and has not delivered it."""
    if code in ("", "0", "99"):
        return Effect(drops=True)
    if code in _HARD:
        return Effect(bounces=said or "Message refused")
    return Effect(trouble=f"rules cannot make a message wait, which the code {code} does")
