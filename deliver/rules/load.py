"""[[rule]] tables as TOML gives them, turned into Rules, with every error and every probable slip at once."""

import datetime as dt
import re
from collections.abc import Callable, Collection
from typing import TypeVar

from deliver.header_lines import LONGEST_VALUE
from deliver.rules import placeholders
from deliver.rules.conditions import NAMES, compile_when
from deliver.rules.fields import FIELD_NAME
from deliver.rules.logic import EVERY_MESSAGE
from deliver.rules.matching import Budget, Place, closest, is_finite, kind
from deliver.rules.model import Responder, Rule, folder_problem, is_inbox
from deliver.units import parse_span
from deliver.values import INBOX, Action, Problem, Verb

T = TypeVar("T")

LONGEST_LINE = 400
"""Characters of a name or a public sentence; an SMTP reply line has at most 512 (RFC 5321 section 4.5.3.1.5)."""

LONGEST_TAG = 60
"""Characters of what is put before a subject."""

LONGEST_TEXT = 10_000
"""Characters of a reply: nobody reads more of them."""

SHORTEST_SPAN, LONGEST_SPAN = 3600, 90 * 86400
"""Seconds in which a sender is answered once. RFC 5230 section 4.1 wants a week or so."""

_FLAGS = {"seen": "S", "flagged": "F", "answered": "R", "replied": "R", "draft": "D"}
_SEES = ("ham", "spam", "all")

# Lines of ours: a rule that writes them would say in our name what we did not find.
_OURS = frozenset(
    "authentication-results delivered-to return-path x-attachment-status x-filter-error x-virus-status".split()
)
_OUR_PREFIX = "x-spam-"

# What a message cannot be read, answered or traced without, and what tells loops.
_KEPT = frozenset({"received", "from", "date", "mime-version", "content-type", "content-transfer-encoding"})

# RFC 3501 section 9: flag-keyword is an atom.
_KEYWORD = re.compile(r"[!#$&'+,\-./0-9:;<=>?@A-Z\[^_`a-z|}~]{1,50}")

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
# A dash in front would be an option to the program that sends it on.
_ADDRESS = re.compile(rf"(?!-){_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})*")
_LONGEST_ADDRESS = 254  # a path with its <> has at most 256 (RFC 5321 section 4.5.3.1.3)

_STATUS = re.compile(r"([0-9])\.[0-9]{1,3}\.[0-9]{1,3}(?: |$)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def load(
    tables: object, source: str, *, user: bool, programs: Collection[str] = (), lists: Collection[str] = ()
) -> tuple[tuple[Rule, ...], list[Problem]]:
    """The rules in ``tables``, the raw value of a file's top-level key `rule`, and all that is wrong with them.

    ``source`` is the file's name, as explanations call it. ``user`` refuses what only a site's file may say;
    ``programs`` are the names that `pipe` may say, ``lists`` those that `in` may. A Problem's path begins with
    ("rule", index). Rules with an error are left out; the order is the file's. Never raises.
    """
    problems: list[Problem] = []
    top = Place(("rule",), problems, Budget(), frozenset(lists))
    if tables is None:
        return (), problems
    if not isinstance(tables, list):
        top.error(f"expected [[rule]], with two brackets, for each rule, not {kind(tables)}")
        return (), problems
    rules = []
    for index, table in enumerate(tables):
        before = len(problems)
        rule = _rule(table, source, index + 1, top.at(index), programs, user=user)
        if all(problem.warning for problem in problems[before:]):
            rules.append(rule)
    _warn_of_hidden(rules, top)
    return tuple(rules), problems


def _rule(table: object, source: str, number: int, place: Place, programs: Collection[str], *, user: bool) -> Rule:
    rule = Rule("", source, number, EVERY_MESSAGE)
    if not isinstance(table, dict):
        place.error(f"expected a table, not {kind(table)}")
        return rule
    for key, value in table.items():
        try:
            rule = _with_key(rule, key, value, place.at(key), user=user)
        except ValueError as error:
            place.at(key).error(str(error))
    _look_over(rule, table, place)
    for action in rule.placements:
        if action.verb is Verb.PIPE and action.target not in programs:
            place.at("pipe").error(_no_program(action.target, programs, user=user))
    return rule


def _no_program(name: str, programs: Collection[str], *, user: bool) -> str:
    hint = closest(name, programs) or (f" (there are {', '.join(sorted(programs))})" if programs else "")
    where = "[user] may-run of the site's configuration" if user else "[programs]"
    return f'{where} names no program "{name}"{hint}'


def _with_key(rule: Rule, key: str, value: object, place: Place, *, user: bool) -> Rule:
    if key == "stage" and user:
        raise ValueError("only a site's rules have a stage")
    if key in _KEYS:
        return _KEYS[key](rule, value, place)
    if key in NAMES:
        raise ValueError(f'"{key}" is a condition and belongs below [rule.when]')
    meant = _OTHER_WORDS.get(key.lower())
    hint = f"; did you mean {meant}?" if meant else closest(key, {*_KEYS, *NAMES})
    raise ValueError(f'unknown key "{key}"{hint}')


def _look_over(rule: Rule, table: dict[str, object], place: Place) -> None:
    """What no key shows alone."""
    placing = [key for key in _PLACEMENTS if table.get(key, False) is not False]
    if len(placing) > 1 and placing != ["file", "forward"]:
        names = " and ".join(f'"{key}"' for key in placing)
        place.error(f"{names} contradict each other; only file and forward go together")
    if not _ACTIONS.intersection(table):
        place.error("the rule does nothing; give it an action, such as file")
    if rule.reply and {"bounce", "quarantine"}.intersection(placing):
        place.at("reply").error(f'"reply" and "{placing[0]}" contradict each other: such mail is not answered')
    if rule.reply and rule.sees == "spam":
        place.at("reply").warn("spam is never answered")
    if "subscribe" in table and not any(one.verb is Verb.FILE for one in (*rule.placements, *rule.copies)):
        place.at("subscribe").warn("the rule makes no folder; leave this out")
    if rule.never_spam and table.get("sees", "all") != "all":
        place.at("sees").warn("a rule with never-spam sees all mail; leave this out")
    if rule.condition.for_spam and _seen(rule) == "ham":
        place.at("when").warn(
            'the rule sees only mail that is not spam; write sees = "spam" or sees = "all" above [rule.when]'
        )


def _seen(rule: Rule) -> str:
    return "all" if rule.never_spam else rule.sees


def _warn_of_hidden(rules: list[Rule], place: Place) -> None:
    """Say which rules a placing rule without conditions keeps from ever being asked."""
    order = sorted(rules, key=lambda rule: rule.after)
    for index, rule in enumerate(order):
        if not rule.placements or rule.condition is not EVERY_MESSAGE:
            continue
        hidden = [below.number for below in order[index + 1 :] if _seen(rule) in {"all", _seen(below)}]
        if hidden:
            numbers = ", ".join(map(str, hidden[:5])) + (", ..." if hidden[5:] else "")
            below = f"rules {numbers} are" if hidden[1:] else f"rule {numbers} is"
            place.at(rule.number - 1).warn(f"without [rule.when] it places every message, and {below} never asked")


# --- the keys of a rule: each takes the rule so far and returns it with more ---------------------------------------


def _name(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(name=_line(value))


def _when(rule: Rule, value: object, place: Place) -> Rule:
    return rule._replace(condition=compile_when(value, place, _KEYS))


def _stage(rule: Rule, value: object, _place: Place) -> Rule:
    if value != "after":
        raise ValueError('expected stage = "after": behind the user\'s rules; without it the rule stands before them')
    return rule._replace(after=True)


def _sees(rule: Rule, value: object, _place: Place) -> Rule:
    if not isinstance(value, str) or value not in _SEES:
        raise ValueError('expected sees = "ham", "spam" or "all"')
    return rule._replace(sees=value)


def _file(rule: Rule, value: object, place: Place) -> Rule:
    return _placed(rule, _into_folder(_string(value, "a folder"), place))


def _pipe(rule: Rule, value: object, _place: Place) -> Rule:
    return _placed(rule, Action(Verb.PIPE, _string(value, "a program's name")))


def _forward(rule: Rule, value: object, place: Place) -> Rule:
    return _placed(rule, *_each(value, place, "an address", _to_address))


def _discard(rule: Rule, value: object, _place: Place) -> Rule:
    return _placed(rule, Action(Verb.DISCARD)) if _switch("discard", value) else rule


def _bounce(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, str):
        return _placed(rule, Action(Verb.BOUNCE, text=_sentence(value)))
    return _placed(rule, Action(Verb.BOUNCE, text="5.7.1 Message refused")) if _switch("bounce", value) else rule


def _quarantine(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, str):
        return _placed(rule, Action(Verb.QUARANTINE, text=_line(value)))
    return _placed(rule, Action(Verb.QUARANTINE)) if _switch("quarantine", value) else rule


def _copy(rule: Rule, value: object, place: Place) -> Rule:
    def one(text: str) -> Action:
        return _to_address(text) if "@" in text else _into_folder(text, place)

    return rule._replace(copies=tuple(_each(value, place, "a folder or an address", one)))


def _flag(rule: Rule, value: object, place: Place) -> Rule:
    marks = _each(value, place, "a flag", _mark)
    return rule._replace(
        flags="".join(sorted({letter for letter, _ in marks})),
        keywords=tuple(dict.fromkeys(keyword for _, keyword in marks if keyword)),
    )


def _add_header(rule: Rule, value: object, place: Place) -> Rule:
    if not isinstance(value, dict) or not value:
        raise ValueError('expected add-header = { "X-Name" = "value" }')
    lines = []
    for name, text in value.items():
        try:
            lines.append(_header_line(name, text))
        except ValueError as error:
            place.at(name).error(str(error))
    return rule._replace(headers=tuple(lines))


def _remove_header(rule: Rule, value: object, place: Place) -> Rule:
    names = _each(value, place, "a header field's name", _removable)
    return rule._replace(edits=rule.edits._replace(removed=frozenset(names)))


def _tag_subject(rule: Rule, value: object, _place: Place) -> Rule:
    tag = placeholders.check(_line(value))
    if len(tag) > LONGEST_TAG:
        raise ValueError(f"what is put before a subject has at most {LONGEST_TAG} characters")
    return rule._replace(edits=rule.edits._replace(tag=tag))


def _log(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(log=placeholders.check(_line(value)))


def _subscribe(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(subscribe=_switch("subscribe", value))


def _add_score(rule: Rule, value: object, _place: Place) -> Rule:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number of points, not {kind(value)}")
    if not is_finite(value):
        raise ValueError("expected a finite number of points")
    return rule._replace(add_score=float(value))


def _never_spam(rule: Rule, value: object, _place: Place) -> Rule:
    return rule._replace(never_spam=_switch("never-spam", value))


# --- reply -------------------------------------------------------------------------------------------------------


def _reply(rule: Rule, value: object, place: Place) -> Rule:
    table = {"text": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise ValueError(f"expected a table with the reply's text, [rule.reply], not {kind(value)}")
    reply = Responder("Auto: {subject}", "")
    for key, item in table.items():
        below = place.at(key)
        try:
            if key not in _REPLY:
                raise ValueError(f'a reply has no key "{key}"{closest(key, _REPLY)} (there are {", ".join(_REPLY)})')
            reply = _REPLY[key](reply, item, below)
        except ValueError as error:
            below.error(str(error))
    if "text" not in table:
        place.error('a reply needs a text: text = """..."""')
    if reply.since and reply.until and reply.until < reply.since:
        place.at("until").error("the last day is before the first, from-date")
    return rule._replace(reply=reply)


def _reply_text(reply: Responder, value: object, _place: Place) -> Responder:
    text = _string(value, "the reply's text").strip()
    if not text or len(text) > LONGEST_TEXT:
        raise ValueError(f"a reply's text has 1 to {LONGEST_TEXT:,} characters")
    if bad := next((char for char in text if not char.isprintable() and char not in "\n\t"), ""):
        raise ValueError(f"a reply's text has no control characters such as {bad!r}")
    return reply._replace(text=placeholders.check(text))


def _reply_subject(reply: Responder, value: object, _place: Place) -> Responder:
    return reply._replace(subject=placeholders.check(_line(value)))


def _day(value: object) -> str:
    if isinstance(value, dt.datetime):
        value = value.date()
    if not isinstance(value, dt.date):
        raise ValueError(f"expected a day without quotes, such as 2026-12-24, not {kind(value)}")
    return value.isoformat()


def _reply_every(reply: Responder, value: object, _place: Place) -> Responder:
    span = parse_span(_string(value, "a span of time"))
    if not SHORTEST_SPAN <= span <= LONGEST_SPAN:
        raise ValueError('a sender is answered once in "1 h" to "90 d"')
    return reply._replace(every=span)


def _reply_own(reply: Responder, value: object, place: Place) -> Responder:
    return reply._replace(own=tuple(_each(value, place, "an address", lambda text: _to_address(text).target)))


_REPLY: dict[str, Callable[[Responder, object, Place], Responder]] = {
    "subject": _reply_subject,
    "text": _reply_text,
    "from-date": lambda reply, value, _place: reply._replace(since=_day(value)),
    "until": lambda reply, value, _place: reply._replace(until=_day(value)),
    "every": _reply_every,
    "my-addresses": _reply_own,
}


# --- tests beside a rule -----------------------------------------------------------------------------------------

_TEST = ("name", "message", "file", "sender", "recipient", "extension", "now", "scan", "expect")


def _test(rule: Rule, value: object, place: Place) -> Rule:
    """`deliver check --test` runs them; a delivery only wants them well-formed."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError('expected [[rule.test]] with message = """...""" and expect = { folder = "..." }')
    for index, one in enumerate(value):
        below = place.at(index)
        for key in one:
            if key not in _TEST:
                below.at(key).error(f'a test has no key "{key}"{closest(key, _TEST)} (there are {", ".join(_TEST)})')
        if ("message" in one) == ("file" in one):
            below.error("a test has either message, the whole text, or file, the name of one beside this file")
        for key in {"name", "message", "file", "sender", "recipient", "extension"}.intersection(one):
            if not isinstance(one[key], str):
                below.at(key).error(f"expected text in quotes, not {kind(one[key])}")
        if "now" in one and not isinstance(one["now"], dt.datetime):
            below.at("now").error(f"expected a time such as 2026-12-24T12:00:00, not {kind(one['now'])}")
        for key in ("scan", "expect"):
            if key in one and not (isinstance(one[key], dict) and one[key]):
                below.at(key).error(f"expected a table, not {kind(one[key])}")
        if "expect" not in one:
            below.error('a test says what it expects: expect = { folder = "..." }')
    return rule


_KEYS: dict[str, Callable[[Rule, object, Place], Rule]] = {
    "name": _name,
    "when": _when,
    "stage": _stage,
    "sees": _sees,
    "subscribe": _subscribe,
    "test": _test,
    "file": _file,
    "copy": _copy,
    "forward": _forward,
    "discard": _discard,
    "bounce": _bounce,
    "quarantine": _quarantine,
    "pipe": _pipe,
    "flag": _flag,
    "add-header": _add_header,
    "remove-header": _remove_header,
    "tag-subject": _tag_subject,
    "reply": _reply,
    "log": _log,
    "add-score": _add_score,
    "never-spam": _never_spam,
}

_PLACEMENTS = ("file", "forward", "pipe", "discard", "bounce", "quarantine")
_ACTIONS = frozenset(_KEYS) - {"name", "when", "stage", "sees", "subscribe", "test"}

# What Sieve (RFC 5228, 5229, 5230, 5232, 5429), procmail and mail programs call the same thing.
_OTHER_WORDS = {
    word: meant
    for meant, words in {
        '"bounce"': "reject ereject",
        '"forward"': "redirect",
        '"file"': "fileinto folder move",
        'file = "INBOX"': "keep",
        '"discard"': "delete drop",
        '"flag"': "addflag setflag",
        '"reply"': "vacation autoreply",
        "[rule.when]": "if when-all",
    }.items()
    for word in words.split()
}

# --- values ------------------------------------------------------------------------------------------------------


def _placed(rule: Rule, *actions: Action) -> Rule:
    return rule._replace(placements=(*rule.placements, *actions))


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected {key} = true, not {kind(value)}")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected {what} in quotes, not {kind(value)}")
    return value


def _each(value: object, place: Place, what: str, one: Callable[[str], T]) -> list[T]:
    """What ``one`` makes of a string, or of each in an array."""
    if not isinstance(value, list):
        return [one(_string(value, what))]
    if not value:
        raise ValueError("the array is empty")
    made = []
    for index, item in enumerate(value):
        try:
            made.append(one(_string(item, what)))
        except ValueError as error:
            place.at(index).error(str(error))
    return made


def _line(value: object) -> str:
    """Words that logs and lists show."""
    text = _string(value, "words").strip()
    if not text or not text.isprintable() or len(text) > LONGEST_LINE:
        raise ValueError(f"expected one line of at most {LONGEST_LINE} characters, without control characters")
    return text


def _sentence(value: str) -> str:
    """What the sender of a bounced message reads, behind a status code (RFC 3463)."""
    text = _line(value)
    if not text.isascii():
        raise ValueError("a bounce's text has only ASCII characters, as SMTP replies do (RFC 5321 section 4.2)")
    status = _STATUS.match(text)
    if status and status[1] != "5":
        raise ValueError(f'a bounce is final: its status code begins with 5, not {status[1]} (such as "5.7.1 Refused")')
    return text if status else f"5.7.1 {text}"


def _into_folder(name: str, place: Place) -> Action:
    placeholders.check(name)
    used = placeholders.names(name)
    if wrong := folder_problem(placeholders.sample(name)):
        raise ValueError(wrong)
    if used and name.startswith("{"):
        place.warn(
            f"whoever writes to you chooses the folder, Sent or Trash as well; give it a level, "
            f'such as "Mail.{{{used[0]}}}"'
        )
    if used:
        return Action(Verb.FILE, name)
    return Action(Verb.FILE, INBOX if is_inbox(name) else name)


def _to_address(text: str) -> Action:
    if not _ADDRESS.fullmatch(text) or len(text) > _LONGEST_ADDRESS:
        raise ValueError(f'"{text}" is no mail address such as "user@example.org"')
    return Action(Verb.FORWARD, text)


def _mark(flag: str) -> tuple[str, str]:
    """A flag's letter, or a keyword: "$Junk" (RFC 5788 gives those that have a meaning a dollar), "keyword:Work"."""
    if flag.lower() in _FLAGS:
        return _FLAGS[flag.lower()], ""
    keyword = flag.removeprefix("keyword:")
    if keyword == flag and not flag.startswith("$"):
        known = f'(there are {", ".join(_FLAGS)}; an IMAP keyword is written "$Junk" or "keyword:Work")'
        raise ValueError(f'unknown flag "{flag}"{closest(flag, _FLAGS)} {known}')
    if not _KEYWORD.fullmatch(keyword):
        raise ValueError(f'"{keyword}" is no IMAP keyword: those are ASCII, without blanks and any of (){{}}%*"\\]')
    return "", keyword


def _header_line(name: str, value: object) -> tuple[str, str]:
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{name}" is no header field\'s name: those are ASCII, without blanks and colons')
    if re.search("[*?]", name):
        raise ValueError(f'"{name}" is no pattern here: write each name whole')
    if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIX):
        raise ValueError(f'"{name}" is one of the lines that only the filter itself writes')
    text = _string(value, "a value").strip(" ")
    if not text or _CONTROL.search(text):
        raise ValueError("a header field's value is one line, not empty, without control characters")
    if len(text) > LONGEST_VALUE:
        raise ValueError(f"a header field's value has at most {LONGEST_VALUE} characters")
    return name, placeholders.check(text)


def _removable(name: str) -> bytes:
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{name}" is no header field\'s name: those are ASCII, without blanks and colons')
    if re.search("[*?]", name):
        raise ValueError(f'"{name}" is no pattern here: write each name whole')
    if name.lower() in _OURS or name.lower().startswith(_OUR_PREFIX):
        raise ValueError(f'"{name}" is one of the lines that only the filter itself writes and removes')
    if name.lower() in _KEPT:
        raise ValueError(f'"{name}" stays: without it a message cannot be read or traced')
    return name.lower().encode("ascii")
