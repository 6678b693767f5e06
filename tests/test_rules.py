"""The rule language: what a file may say, what is said about slips, and what rules do with a message."""

import time
import tomllib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deliver.message import Message, Source, read_framing
from deliver.rules.conditions import CONDITIONS, DEEPEST
from deliver.rules.evaluate import Walk, walk
from deliver.rules.fields import FIELD_NAME
from deliver.rules.load import load
from deliver.rules.model import Facts, Rule, View, folder_problem, is_inbox
from deliver.values import Action, Content, Envelope, Problem, Step, Verb, unheard

ENVELOPE = Envelope("bounces@lists.example.org", "bob@example.net", "/home/bob/Maildir", extension="lists")

MAIL = b"""\
From: "Alice, the Boss" <Alice@Example.org>
To: Team: bob@example.net, "Carol" <carol@example.net>;
Cc: dave@example.com
Reply-To: <noreply@example.org>
Subject: =?utf-8?q?Re=3A_Rechnung_f=C3=BCr_M=C3=A4rz?= [A*B]
List-Id: "The <odd> list" <announce.qmail.example>
Message-ID: <1234@mail.example.org>
X-Mailer: first
X-Mailer: second
X-Empty:

Subject: this is the body
"""


def message(raw: bytes = MAIL) -> Message:
    """A message as a delivery has it."""
    source = Source.of(raw)
    return Message(source, read_framing(source.head))


def facts(
    content: Content | None = None,
    *,
    score: float | None = None,
    spam: bool = False,
    viruses: tuple[str, ...] = (),
    envelope: Envelope = ENVELOPE,
) -> Facts:
    """All that rules may know."""
    return Facts(content or message(), envelope, score, spam, viruses)


def read(text: str, *, user: bool = False) -> tuple[tuple[Rule, ...], list[Problem]]:
    """What the loader makes of a file."""
    return load(tomllib.loads(text).get("rule"), "mailfilter.toml", user=user)


def rules(text: str) -> tuple[Rule, ...]:
    """The rules of a file without a fault."""
    loaded, problems = read(text)
    assert problems == []
    return loaded


def rule(text: str) -> Rule:
    """One rule without a fault."""
    (only,) = rules(f"[[rule]]\n{text}")
    return only


def matches(when: str, known: Facts | None = None) -> bool:
    """Whether conditions hold; warnings do not matter."""
    loaded, problems = read(f"[[rule]]\nflag = 'seen'\n[rule.when]\n{when}")
    assert [problem for problem in problems if not problem.warning] == []
    return loaded[0].condition.matches(View(known or facts())) is True


def problems_of(text: str, *, user: bool = False) -> list[Problem]:
    """What is said about a file with one [[rule]]."""
    return read(f"[[rule]]\n{text}", user=user)[1]


def the_error(text: str, *, user: bool = False) -> Problem:
    """The only thing wrong with a rule."""
    (problem,) = problems_of(text, user=user)
    assert not problem.warning
    return problem


def condition_error(when: str) -> Problem:
    """The only thing wrong with a condition."""
    return the_error(f"file = 'X'\n[rule.when]\n{when}")


def at_five(score: float | None) -> Callable[[float], bool]:
    """Spam from five points on."""
    return lambda added: (score or 0.0) + added >= 5


def ask(asked: Sequence[Rule], known: Facts | None = None) -> tuple[Walk, list[str]]:
    """The walk, and what is said about it."""
    known = known or facts()
    steps: list[Step] = []
    said = walk(asked, known, at_five(known.score), steps.append)
    assert {step.kind for step in steps} <= {"rule"}
    return said, [step.text for step in steps]


# --- conditions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [
        "from = 'alice@example.org'",
        "from = '*@example.ORG'",
        "from = { contains = '@example.' }",
        "from = { regex = '^al.*g$' }",
        "from = ['nobody@x.test', 'alice@*']",
        "to = 'carol@example.net'",
        "to = 'bob@example.net'",
        "cc = 'dave@*'",
        "reply-to = 'noreply@*'",
        "sender = '*@lists.example.org'",
        "recipient = 'BOB@example.net'",
        "extension = 'l*s'",
        "list-id = 'announce.qmail.example'",
        "list-id = '*.qmail.example'",
        "message-id = '<*@mail.example.org>'",
        "header = { X-Mailer = 'second' }",
        "header = { x-mailer = 'FIRST', X-Empty = '' }",
        "header = { X-Empty = '*' }",
        "header = { From = '*the boss*' }",
    ],
)
def test_a_condition_matches_what_the_message_says(when: str) -> None:
    assert matches(when)


@pytest.mark.parametrize(
    "when",
    [
        "from = '*Boss*'",  # a display name is no address
        "from = 'alice'",
        "from = 'example.org'",
        "from = '\"Alice, the Boss\" <Alice@Example.org>'",
        "to = 'dave@example.com'",
        "to = 'Team*'",
        "cc = 'bob@*'",
        "list-id = '*<*'",
        "list-id = 'odd'",
        "message-id = '1234@*'",
        "header = { X-Mailer = 'third' }",
        "header = { X-Mailer = 'first', X-None = '*' }",
        "recipient = 'bob'",
    ],
)
def test_a_condition_does_not_match_anything_else(when: str) -> None:
    assert not matches(when)


SUBJECT = "Re: Rechnung für März [A*B]"


@pytest.mark.parametrize(
    "when",
    [
        f"subject = '{SUBJECT.replace('*', chr(92) + '*')}'",
        "subject = '*rechnung*'",
        "subject = '*FÜR MÄRZ*'",
        "subject = 're: *'",
        "subject = '*'",
        "subject = '**'",
        "subject = 'R?:*'",
        "subject = '*M?rz*'",
        r"subject = '*[A\*B]'",
        r"subject = '*[A\*?]'",
        "subject = 'Re:*Re*[A*B]'",
        f"subject = {{ is = '{SUBJECT.upper()}' }}",
        "subject = { contains = 'a*b' }",
        "subject = { contains = ['x', 'märz'] }",
        "subject = { matches = '*märz*' }",
        r"subject = { regex = '^re:\s' }",
        r"subject = { regex = ['x{3}', 'M\pLrz'] }",
    ],
)
def test_text_is_matched_as_a_whole_whatever_its_case(when: str) -> None:
    assert matches(when)


@pytest.mark.parametrize(
    "when",
    [
        "subject = 'Rechnung'",
        "subject = 'rechnung*'",
        "subject = '*rechnung'",
        "subject = '?'",
        "subject = '*für?März'",
        "subject = '*[A.B]'",
        "subject = '*[AB]'",
        r"subject = '*[A\?B]'",
        "subject = 'Re:*Re:*'",
        "subject = { is = 'Re: Rechnung' }",
        "subject = { contains = '*Rechnung*' }",
        "subject = { regex = '^rechnung' }",
        "subject = '*this is the body*'",
    ],
)
def test_text_that_differs_does_not_match(when: str) -> None:
    assert not matches(when)


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [
        ("ab*ba", "aba", False),  # front and end may not share a letter
        ("ab*ba", "abba", True),
        ("a*b*c", "acb", False),
        ("a*bc*c", "abc", False),
        ("a*bc*bc*d", "abcbcd", True),
        ("a*bc*bc*d", "abcd", False),
        ("*a?c*", "xxabcxx", True),
        ("?", "ü", True),
        ("??", "ü", False),
        ("a.c", "abc", False),
        ("[ab]?", "ax", False),
        (r"\*\?\\", r"*?\\"[:-1], True),
        (r"\a", "a", True),
        ("STRASSE", "straße", True),
        ("", "", True),
        ("", "x", False),
        ("{a,b}$^?", "{a,b}$^x", True),
    ],
)
def test_only_star_and_question_mark_are_special(glob: str, text: str, expected: bool) -> None:
    found = matches(f"header = {{ X = '{glob}' }}", facts(message(f"X: {text}\n\n".encode())))
    assert found is expected


@pytest.mark.parametrize("field", ["from", "to", "cc", "reply-to", "subject", "list-id", "message-id"])
def test_an_absent_field_matches_nothing(field: str) -> None:
    bare = facts(message(b"X: y\n\nbody\n"))
    assert not matches(f"{field} = '*'", bare)
    assert not matches(f"{field} = ''", bare)
    assert not matches(f"header = {{ {field} = '*' }}", bare)
    assert matches(f"not = {{ {field} = '*' }}", bare)


def test_the_null_sender_and_an_empty_extension_are_there_and_empty() -> None:
    bounce = facts(envelope=Envelope("", "bob@example.net", "/m"))
    assert matches("sender = ''", bounce)
    assert matches("sender = '*'", bounce)
    assert matches("extension = ''", bounce)
    assert matches("extension = '*'", bounce)
    assert not matches("sender = '?*'", bounce)
    assert not matches("sender = ''")


def test_bytes_of_the_environment_that_are_no_text_can_be_matched() -> None:
    odd = facts(envelope=Envelope(b"j\xf6rg@example.org".decode("utf-8", "surrogateescape"), "b@x.test", "/m"))
    assert matches("sender = '*@example.org'", odd)
    assert matches("sender = 'j?rg@*'", odd)
    assert matches("sender = { regex = 'rg@' }", odd)


@pytest.mark.parametrize(
    ("when", "size", "expected"),
    [
        ("size = '> 1 KB'", 1001, True),
        ("size = '>1KB'", 1000, False),
        ("size = '>= 1 KB'", 1000, True),
        ("size = '< 1 KiB'", 1023, True),
        ("size = '< 1 KiB'", 1024, False),
        ("size = '<= 1 KiB'", 1024, True),
        ("size = '= 1 KiB'", 1024, True),
        ("size = '1 KiB'", 1024, True),
        ("size = 1024", 1024, True),
        ("size = 1024", 1025, False),
        ("size = ['< 10', '> 1 KB']", 2000, True),
        ("size = ['< 10', '> 1 KB']", 500, False),
        ("all = [{ size = '> 10' }, { size = '< 1 KB' }]", 500, True),
    ],
)
def test_sizes_are_compared(when: str, size: int, expected: bool) -> None:
    raw = b"Subject: x\n\n"
    assert matches(when, facts(message(raw + b"x" * (size - len(raw))))) is expected


@pytest.mark.parametrize(
    ("when", "score", "expected"),
    [
        ("score = '>0'", 0.1, True),
        ("score = '>0'", 0.0, False),
        ("score = '>= 5'", 5.0, True),
        ("score = '< -1.5'", -2.0, True),
        ("score = '< -1.5'", -1.0, False),
        ("score = 4.5", 4.5, True),
        ("score = '>-100'", None, False),
        ("score = '<100'", None, False),
        ("not = { score = '<100' }", None, True),
    ],
)
def test_scores_are_compared_where_there_is_one(when: str, score: float | None, expected: bool) -> None:
    assert matches(when, facts(score=score)) is expected


def test_spam_and_virus_take_true_or_false_and_virus_a_name() -> None:
    clean, bad = facts(), facts(spam=True, viruses=("Win.Test.EICAR_HDB-1", "Other"))
    assert matches("spam = true", bad)
    assert not matches("spam = true", clean)
    assert matches("spam = false", clean)
    assert matches("virus = true", bad)
    assert matches("virus = false", clean)
    assert not matches("virus = false", bad)
    assert matches("virus = '*eicar*'", bad)
    assert not matches("virus = '*'", clean)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("from = 'alice@*'\nto = 'bob@*'", True),
        ("from = 'alice@*'\nto = 'nobody@*'", False),
        ("any = [{ from = 'nobody@*' }, { to = 'bob@*' }]", True),
        ("any = [{ from = 'nobody@*' }, { to = 'nobody@*' }]", False),
        ("any = [{ from = 'alice@*', to = 'nobody@*' }]", False),
        ("all = [{ to = 'bob@*' }, { to = 'carol@*' }]", True),
        ("all = [{ to = 'bob@*' }, { to = 'nobody@*' }]", False),
        ("not = { from = 'nobody@*' }", True),
        ("not = { from = 'alice@*', to = 'nobody@*' }", True),
        ("not = { from = 'alice@*' }", False),
        ("not = [{ from = 'nobody@*' }, { to = 'nobody@*' }]", True),
        ("not = [{ from = 'nobody@*' }, { to = 'bob@*' }]", False),
        ("not = { not = { any = [{ from = 'alice@*' }] } }", True),
        ("from = 'alice@*'\nnot = { subject = '*test*' }", True),
    ],
)
def test_conditions_combine(when: str, expected: bool) -> None:
    assert matches(when) is expected


def test_a_rule_without_conditions_is_for_every_message() -> None:
    assert rule("flag = 'seen'").condition.matches(View(facts(message(b""))))


def test_every_condition_of_the_language_describes_itself() -> None:
    values: dict[str, Any] = {
        "header": {"X-Any": "*x*"},
        "size": "> 5 KB",
        "score": ">= 5",
        "spam": False,
        "virus": True,
        "encrypted": "pgp",
        "is-list": True,
        "is-bounce": "permanent",
        "duplicate": "1 h",
        "date": "> 2026-01-01",
        "time": "22:00 to 06:00",
        "weekday": "mon to fri",
        "dkim": "pass",
        "auth": {"spf": "pass"},
        "in": "friends",
        "recipients": "> 20",
        "header-count": {"Received": "> 30"},
    }
    starts = {"header": "X-Any", "in": "from in"}
    for name in CONDITIONS:
        tables = [{"flag": "seen", "when": {name: values.get(name, "*x*")}}]
        loaded, problems = load(tables, "f", user=False, lists=["friends"])
        assert not [problem for problem in problems if not problem.warning], name
        words = loaded[0].condition.words
        assert words.startswith(starts.get(name, name))
        assert len(words) > len(name) + 3


# --- patterns stay cheap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [
        "subject = { regex = '(x+x+)+y' }",
        "subject = { regex = '(a|aa)+$b' }",
        "subject = '*a*a*a*a*a*a*a*a*a*a*b'",
        "subject = '*?a*?a*?a*?a*?a*?a*?a*b'",
        "subject = { contains = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaab' }",
    ],
)
def test_no_pattern_takes_more_than_linear_time(when: str) -> None:
    long = facts(message(b"Subject: " + b"a" * 90_000 + b"\n\n"))
    start = time.process_time()
    assert not matches(when, long)
    assert time.process_time() - start < 5


def test_a_file_of_costly_patterns_is_refused_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    tables = [{"flag": "seen", "when": {"subject": {"regex": r"\pL{999}"}}} for _ in range(200)]
    start = time.process_time()
    loaded, problems = load(tables, "f", user=True)
    assert time.process_time() - start < 60
    assert loaded == ()
    assert len(problems) == 200
    assert "too many and too large" in problems[-1].text
    assert capfd.readouterr() == ("", "")  # RE2 would write to standard error


def test_a_thousand_header_rules_read_each_field_once() -> None:
    asked: list[str] = []

    class Counted(Message):
        def fields(self, name: str) -> list[bytes]:
            asked.append(name.lower())
            return super().fields(name)

    names = ("subject", "list-id", "from", "to")
    tables = [{"flag": "seen", "when": {names[n % 4]: f"*nothing {n}*"}} for n in range(1000)]
    loaded, problems = load(tables, "f", user=True)
    assert problems == []
    source = Source.of(MAIL)
    start = time.process_time()
    said = walk(loaded, facts(Counted(source, read_framing(source.head))), at_five(None), unheard)
    assert time.process_time() - start < 1
    assert said.flags == ""
    assert sorted(asked) == sorted(names)


def test_fields_that_no_rule_asks_for_are_not_read() -> None:
    class Sealed(Message):
        def fields(self, name: str) -> list[bytes]:
            raise AssertionError(name)

    source = Source.of(MAIL)
    said, _ = ask(rules("[[rule]]\nfile = 'X'\n[rule.when]\nsize = '> 1'"), facts(Sealed(source, read_framing(b""))))
    assert said.placements == (Action(Verb.FILE, "X"),)


def test_only_the_front_of_an_endless_field_is_looked_at() -> None:
    raw = b"To: " + b"a@b.test,\n " * 20_000 + b"last@example.org\nTo: c@d.test\n\n"
    start = time.process_time()
    assert matches("to = 'a@b.test'", facts(message(raw)))
    assert not matches("to = 'last@example.org'", facts(message(raw)))
    assert time.process_time() - start < 10


# --- slips in conditions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "path", "words"),
    [
        ("sbject = 'x'", ("sbject",), 'unknown condition "sbject"; did you mean "subject"?'),
        ("Subject = 'x'", ("Subject",), 'did you mean "subject"?'),
        ("reply_to = 'x'", ("reply_to",), 'did you mean "reply-to"?'),
        ("X-Foo = 'x'", ("X-Foo",), 'header = { "X-Foo" = ... }'),
        ("zzz = 'x'", ("zzz",), 'unknown condition "zzz"'),
        ("or = [{ from = 'a@b.test' }]", ("or",), 'did you mean "any"?'),
        ("and = [{ from = 'a@b.test' }]", ("and",), 'did you mean "all"?'),
        ("file = 'x'", ("file",), '"file" belongs to the rule, above [rule.when]'),
        ("name = 'x'", ("name",), '"name" belongs to the rule, above [rule.when]'),
        ("not = { discard = true }", ("not", "discard"), '"discard" belongs to the rule, above [rule.when]'),
        ("from = 5", ("from",), "expected a string"),
        ("from = true", ("from",), "not true"),
        ("from = 2024-01-01", ("from",), "not a date"),
        ("from = []", ("from",), "empty"),
        ("from = ['*', 5]", ("from", 1), "expected a string"),
        ("from = [['*']]", ("from", 0), "not an array"),
        ("from = {}", ("from",), "exactly one of is, contains, matches, regex"),
        ("from = { is = 'x', contains = 'y' }", ("from",), "exactly one of"),
        ("from = { contain = 'x' }", ("from",), 'unknown kind of match "contain"; did you mean "contains"?'),
        ("from = { is = 5 }", ("from", "is"), "expected a string"),
        ("from = { is = ['x', 5] }", ("from", "is", 1), "expected a string"),
        ("from = { contains = '' }", ("from", "contains"), "everything would match"),
        ("from = { regex = '' }", ("from", "regex"), "everything would match"),
        (r"from = 'x\'", ("from",), "escapes nothing"),
        ("header = 'x'", ("header",), 'expected header = { "X-Name" = "*value*" }'),
        ("header = {}", ("header",), "expected header ="),
        ("header = { 'X Y' = 'x' }", ("header", "X Y"), "no header field's name"),
        ("header = { 'X:' = 'x' }", ("header", "X:"), "no header field's name"),
        ("header = { 'Ü' = 'x' }", ("header", "Ü"), "no header field's name"),
        ("size = '> 5 parsec'", ("size",), 'expected a size such as "25 MiB"'),
        ("size = '>'", ("size",), "expected a size"),
        ("size = '=> 5'", ("size",), "expected a comparison"),
        ("size = '> -5'", ("size",), "expected a size"),
        ("size = true", ("size",), "expected a comparison"),
        ("size = nan", ("size",), "finite"),
        ("size = inf", ("size",), "finite"),
        (f"size = 1{'0' * 400}", ("size",), "finite"),
        (f"size = 0x{'f' * 5000}", ("size",), "finite"),
        ("score = '> nan'", ("score",), "no number"),
        ("score = '> inf'", ("score",), "no number"),
        ("score = '> 5 MB'", ("score",), "no number"),
        ("score = '> 5,5'", ("score",), "no number"),
        (f"score = '> {'9' * 400}'", ("score",), "no number"),
        ("spam = 'yes'", ("spam",), "expected spam = true or spam = false"),
        ("virus = 1", ("virus",), "expected a string"),
        ("any = { from = 'x' }", ("any",), "expected any = [{ ... }, { ... }]"),
        ("all = 'x'", ("all",), "expected all = ["),
        ("any = []", ("any",), "empty"),
        ("any = ['x']", ("any", 0), "expected a table"),
        ("any = [{}]", ("any", 0), "no condition"),
        ("not = 'x'", ("not",), "expected not = { ... } or not = ["),
        ("not = {}", ("not",), "no condition"),
        ("not = [{ from = '*' }, { form = 'x' }]", ("not", 1, "form"), 'did you mean "from"?'),
    ],
)
def test_a_slip_in_a_condition_is_an_error_where_it_is(when: str, path: tuple[str | int, ...], words: str) -> None:
    problem = condition_error(when)
    assert problem.path == ("rule", 0, "when", *path)
    assert words in problem.text


def test_the_closed_list_of_the_language_is_complete() -> None:
    listed = (
        "from to cc reply-to subject list-id message-id header sender recipient extension size spam score virus "
        "attachment body dkim is-bounce is-list date time weekday duplicate in all any not"
    )
    for name in listed.split():
        assert not [p for p in problems_of(f"file = 'X'\n[rule.when]\n{name} = 'x'") if "unknown" in p.text], name


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?=a)", "no lookahead or lookbehind"),
        ("(?<!a)b", "no lookahead or lookbehind"),
        (r"(a)\1", "no backreferences"),
        ("a++", "no possessive quantifiers"),
        ("a*+", "no possessive quantifiers"),
        ("(?>a)", "no atomic groups"),
        ("a{1001}", "no repetitions of more than 1000"),
        ("(", "missing )"),
        ("[z-a]", "invalid character class range"),
        (r"\pL{999}", "too large"),
        (r"\pL{50}", "too large"),
    ],
)
def test_a_refused_pattern_says_why(pattern: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    problem = condition_error(f"subject = {{ regex = '{pattern}' }}")
    assert problem.path == ("rule", 0, "when", "subject", "regex")
    assert "the pattern is" in problem.text
    assert words in problem.text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("when", ["'x'", "5", "[]", "{}"])
def test_conditions_are_a_table_that_is_not_empty(when: str) -> None:
    # An empty [rule.when] above a discard would delete all mail.
    assert the_error(f"discard = true\nwhen = {when}").path == ("rule", 0, "when")


def test_conditions_nested_without_end_are_refused() -> None:
    deep: dict[str, object] = {"from": "*"}
    for _ in range(20_000):
        deep = {"not": deep}
    _, problems = load([{"file": "X", "when": deep}], "f", user=True)
    assert [f"{DEEPEST} deep" in problem.text for problem in problems] == [True]


# --- the keys of a rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "placements"),
    [
        ("file = 'Lists.qmail'", (Action(Verb.FILE, "Lists.qmail"),)),
        ("file = 'inbox'", (Action(Verb.FILE, "INBOX"),)),
        ("forward = 'a@example.org'", (Action(Verb.FORWARD, "a@example.org"),)),
        (
            "forward = ['a@example.org', 'b@example.org']",
            (Action(Verb.FORWARD, "a@example.org"), Action(Verb.FORWARD, "b@example.org")),
        ),
        ("file = 'X'\nforward = 'a@b.test'", (Action(Verb.FILE, "X"), Action(Verb.FORWARD, "a@b.test"))),
        ("discard = true", (Action(Verb.DISCARD),)),
        ("quarantine = true", (Action(Verb.QUARANTINE),)),
        ("quarantine = 'Läuft nicht'", (Action(Verb.QUARANTINE, text="Läuft nicht"),)),
        ("bounce = true", (Action(Verb.BOUNCE, text="5.7.1 Message refused"),)),
        ("bounce = 'Go away'", (Action(Verb.BOUNCE, text="5.7.1 Go away"),)),
        ("bounce = '5.2.1 Moved'", (Action(Verb.BOUNCE, text="5.2.1 Moved"),)),
        ("discard = false\nfile = 'X'", (Action(Verb.FILE, "X"),)),
        ("flag = 'seen'", ()),
    ],
)
def test_placements(text: str, placements: tuple[Action, ...]) -> None:
    assert rule(text).placements == placements


def test_what_only_adds() -> None:
    found = rule(
        "name = 'n'\ncopy = ['Archive', 'x@example.org', 'Inbox']\nflag = ['seen', 'flagged', 'Draft', 'answered']\n"
        "add-header = { X-One = 'a b', X-Two = 'ü' }\nadd-score = -2.5\nnever-spam = true\n"
        "sees = 'all'\nstage = 'after'"
    )
    assert found.copies == (
        Action(Verb.FILE, "Archive"),
        Action(Verb.FORWARD, "x@example.org"),
        Action(Verb.FILE, "INBOX"),
    )
    assert found.placements == ()
    assert found.flags == "DFRS"
    assert found.headers == (("X-One", "a b"), ("X-Two", "ü"))
    assert ask([found])[0].headers == b"X-One: a b\nX-Two: =?utf-8?b?w7w=?=\n"
    assert (found.add_score, found.never_spam, found.sees, found.after) == (-2.5, True, "all", True)
    assert (found.name, found.source, found.number, found.title) == ("n", "mailfilter.toml", 1, 'rule "n"')
    assert rule("flag = 'replied'").flags == "R"
    assert rule("copy = 'Archive'").copies == (Action(Verb.FILE, "Archive"),)


def test_a_rule_without_a_name_is_called_by_its_place() -> None:
    assert [one.title for one in rules("[[rule]]\nflag='seen'\n[[rule]]\nflag='seen'")] == [
        "rule 1 of mailfilter.toml",
        "rule 2 of mailfilter.toml",
    ]


def test_a_long_header_value_beyond_ascii_keeps_to_rfc_2047() -> None:
    from email.header import decode_header, make_header

    text = "Größe " * 100 + "😀" * 40
    for name in ("X-A", "X-" + "a" * 60):
        line = ask(rules(f"[[rule]]\nadd-header = {{ {name} = '{text}' }}"))[0].headers.decode("ascii")
        assert line.endswith("\n")
        first, *others = line.rstrip("\n").split("\n")
        assert first.startswith(f"{name}:")
        assert all(other.startswith(" =?utf-8?b?") for other in others)
        assert max(map(len, (first, *others))) <= 76
        assert all(len(word) <= 75 for word in line.split() if word.startswith("=?"))
        value = line.partition(":")[2].replace("\n", "").strip()
        assert str(make_header(decode_header(value))) == text


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("file = 5", ("file",), "expected a folder in quotes, not a number"),
        ("file = ['a', 'b']", ("file",), "not an array"),
        ("file = ''", ("file",), "a folder needs a name"),
        ("file = '.Spam'", ("file",), 'write "Spam"'),
        ("file = '../x'", ("file",), "not a path"),
        ("copy = 'a/b'", ("copy",), 'write "a.b"'),
        ("copy = ['A', '.B']", ("copy", 1), 'write "B"'),
        ("copy = []", ("copy",), "empty"),
        ("copy = 'a@'", ("copy",), "no mail address"),
        ("forward = 'nobody'", ("forward",), "no mail address"),
        ("forward = '-oX@example.org'", ("forward",), "no mail address"),
        ("forward = 'a b@example.org'", ("forward",), "no mail address"),
        ("forward = 'a@b.test, c@d.test'", ("forward",), "no mail address"),
        ("forward = '<a@b.test>'", ("forward",), "no mail address"),
        (r'forward = "a@b.test\nx"', ("forward",), "no mail address"),
        ("forward = 'a@-b.test'", ("forward",), "no mail address"),
        (f"forward = '{'a' * 250}@b.test'", ("forward",), "no mail address"),
        ("forward = ['a@b.test', 5]", ("forward", 1), "expected an address in quotes"),
        ("discard = 'yes'", ("discard",), "expected discard = true"),
        ("bounce = 5", ("bounce",), "expected bounce = true"),
        ("bounce = ''", ("bounce",), "expected one line"),
        (r'bounce = "a\nb"', ("bounce",), "expected one line"),
        ("bounce = 'für dich'", ("bounce",), "only ASCII"),
        ("bounce = '4.2.1 Later'", ("bounce",), "begins with 5"),
        ("quarantine = 5", ("quarantine",), "expected quarantine = true"),
        (r'quarantine = "a\u0007"', ("quarantine",), "expected one line"),
        ("flag = 'sene'", ("flag",), 'unknown flag "sene"; did you mean "seen"?'),
        ("flag = ['seen', 'trashed']", ("flag", 1), 'unknown flag "trashed"'),
        ("flag = true", ("flag",), "expected a flag in quotes"),
        ("add-header = 'X-A: b'", ("add-header",), 'expected add-header = { "X-Name" = "value" }'),
        ("add-header = {}", ("add-header",), "expected add-header ="),
        ("add-header = { X-Spam-Flag = 'YES' }", ("add-header", "X-Spam-Flag"), "only the filter itself"),
        ("add-header = { x-spam-anything = 'x' }", ("add-header", "x-spam-anything"), "only the filter itself"),
        ("add-header = { X-Virus-Status = 'Clean' }", ("add-header", "X-Virus-Status"), "only the filter itself"),
        ("add-header = { X-Filter-Error = 'x' }", ("add-header", "X-Filter-Error"), "only the filter itself"),
        ("add-header = { RETURN-PATH = 'x' }", ("add-header", "RETURN-PATH"), "only the filter itself"),
        ("add-header = { Delivered-To = 'x' }", ("add-header", "Delivered-To"), "only the filter itself"),
        ("add-header = { 'X A' = 'x' }", ("add-header", "X A"), "no header field's name"),
        ("add-header = { 'X:A' = 'x' }", ("add-header", "X:A"), "no header field's name"),
        ("add-header = { 'XÜ' = 'x' }", ("add-header", "XÜ"), "no header field's name"),
        (r'add-header = { X-A = "a\nBcc: x@y.test" }', ("add-header", "X-A"), "without control characters"),
        (r'add-header = { X-A = "a\rb" }', ("add-header", "X-A"), "without control characters"),
        (r'add-header = { X-A = "ü\u0085" }', ("add-header", "X-A"), "without control characters"),
        ("add-header = { X-A = 5 }", ("add-header", "X-A"), "expected a value in quotes"),
        ("add-header = { X-A = ' ' }", ("add-header", "X-A"), "not empty"),
        (f"add-header = {{ X-A = '{'a' * 1000}' }}", ("add-header", "X-A"), "at most"),
        ("add-score = '5'", ("add-score",), "expected a number of points"),
        ("add-score = true", ("add-score",), "expected a number of points"),
        ("add-score = nan", ("add-score",), "finite"),
        ("add-score = -inf", ("add-score",), "finite"),
        ("never-spam = 'yes'", ("never-spam",), "expected never-spam = true"),
        ("file = 'X'\nsees = 'everything'", ("sees",), 'expected sees = "ham", "spam" or "all"'),
        ("file = 'X'\nstage = 'before'", ("stage",), 'expected stage = "after"'),
        ("file = 'X'\nname = ''", ("name",), "expected one line"),
        (r'file = "X"' + "\n" + r'name = "a\u001b[2J"', ("name",), "expected one line"),
        ("fiel = 'X'\nflag = 'seen'", ("fiel",), 'unknown key "fiel"; did you mean "file"?'),
        ("add_header = {}\nflag = 'seen'", ("add_header",), 'did you mean "add-header"?'),
        ("Reject = 'x'\nflag = 'seen'", ("Reject",), 'unknown key "Reject"; did you mean "bounce"?'),
        ("redirect = 'a@b.test'\nflag = 'seen'", ("redirect",), 'did you mean "forward"?'),
        ("FileInto = 'X'\nflag = 'seen'", ("FileInto",), 'did you mean "file"?'),
        ("keep = true\nflag = 'seen'", ("keep",), 'did you mean file = "INBOX"?'),
        ("delete = true\nflag = 'seen'", ("delete",), 'did you mean "discard"?'),
        ("setflag = 'seen'\nfile = 'X'", ("setflag",), 'did you mean "flag"?'),
        ("vacation = 'x'\nfile = 'X'", ("vacation",), 'did you mean "reply"?'),
        ("if = 'x'\nfile = 'X'", ("if",), "did you mean [rule.when]?"),
        ("subject = '*x*'\nfile = 'X'", ("subject",), '"subject" is a condition and belongs below [rule.when]'),
        ("name = 'x'", (), "the rule does nothing"),
        ("discard = true\nfile = 'X'", (), '"file" and "discard" contradict each other'),
        ("bounce = true\nforward = 'a@b.test'", (), '"forward" and "bounce" contradict each other'),
        ("quarantine = true\ndiscard = true", (), '"discard" and "quarantine" contradict each other'),
        ("file = 'X'\nforward = 'a@b.test'\nbounce = 'no'", (), "contradict each other"),
    ],
)
def test_a_slip_in_a_rule_is_an_error_where_it_is(text: str, path: tuple[str | int, ...], words: str) -> None:
    problem = the_error(text)
    assert problem.path == ("rule", 0, *path)
    assert words in problem.text


@pytest.mark.parametrize(
    ("tables", "path"), [("x", ("rule",)), (5, ("rule",)), ({"file": "X"}, ("rule",)), (["x"], ("rule", 0))]
)
def test_rules_are_an_array_of_tables(tables: object, path: tuple[str | int, ...]) -> None:
    loaded, problems = load(tables, "f", user=True)
    assert loaded == ()
    assert [problem.path for problem in problems] == [path]


def test_no_rules_are_no_problem() -> None:
    assert load(None, "f", user=True) == ((), [])
    assert load([], "f", user=True) == ((), [])


def test_only_a_site_has_stages() -> None:
    problem = the_error("file = 'X'\nstage = 'after'", user=True)
    assert problem.path == ("rule", 0, "stage")
    assert "site" in problem.text


def test_every_error_of_a_file_is_found_at_once() -> None:
    loaded, problems = read(
        "[[rule]]\nfile = '.A'\nflag = ['x', 'y']\n[rule.when]\nform = 'x'\nsize = 'big'\n"
        "any = [{ to = 1 }, { cc = 2 }]\n"
        "[[rule]]\nfile = 'Good'\nwhen = { from = 'a@b.test' }\n[[rule]]\nname = 'z'\n"
    )
    assert [problem.path for problem in problems] == [
        ("rule", 0, "file"),
        ("rule", 0, "flag", 0),
        ("rule", 0, "flag", 1),
        ("rule", 0, "when", "form"),
        ("rule", 0, "when", "size"),
        ("rule", 0, "when", "any", 0, "to"),
        ("rule", 0, "when", "any", 1, "cc"),
        ("rule", 2),
    ]
    assert [one.number for one in loaded] == [2]


# --- what is probably meant --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("when = { from = '@x.org' }", ("when", "from"), 'write "*@x.org"'),
        ("when = { to = ['a@b.test', '@x.org'] }", ("when", "to", 1), 'write "*@x.org"'),
        ("when = { not = { sender = '@x.org' } }", ("when", "not", "sender"), 'write "*@x.org"'),
        ("when = { from = 'Bob <bob@x.org>' }", ("when", "from"), 'write "bob@x.org"'),
        ("when = { cc = 'a@b.test, c@d.test' }", ("when", "cc"), 'write ["a@b.test", "c@d.test"]'),
        ("when = { sender = '<>' }", ("when", "sender"), 'write ""'),
        ("when = { list-id = ['a.test', '<b.test>'] }", ("when", "list-id", 1), 'without them: "b.test"'),
        ("when = { subject = 'invoice' }", ("when", "subject"), 'write "*invoice*"'),
        (r"when = { subject = 'a\*b' }", ("when", "subject"), "only a subject that is just this"),
        ("when = { subject = ['*ok*', 'invoice'] }", ("when", "subject", 1), 'write "*invoice*"'),
        ("when = { spam = true }", ("when",), 'sees = "all"'),
        ("when = { score = '> 3' }", ("when",), 'sees = "all"'),
        ("when = { score = ['>= 3'] }", ("when",), 'sees = "all"'),
        ("when = { any = [{ spam = true }, { from = '*' }] }", ("when",), 'sees = "all"'),
        ("never-spam = true\nsees = 'ham'", ("sees",), "sees all mail"),
    ],
)
def test_check_says_what_is_probably_meant(text: str, path: tuple[str | int, ...], words: str) -> None:
    loaded, problems = read(f"[[rule]]\nfile = 'X'\n{text}")
    assert [(problem.path, problem.warning) for problem in problems] == [(("rule", 0, *path), True)]
    assert words in problems[0].text
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "text",
    [
        "when = { from = '*@x.org', subject = '*invoice*' }",
        "when = { subject = { is = 'invoice' } }",
        "when = { subject = 'invoice?' }",
        "when = { subject = '' }",
        "sees = 'spam'\nwhen = { score = '> 3' }",
        "sees = 'all'\nwhen = { spam = true }",
        "never-spam = true\nwhen = { spam = true }",
        "when = { spam = false, score = '< 3' }",
        "when = { not = { score = '> 3' } }",
        "never-spam = true\nsees = 'all'",
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(text: str) -> None:
    assert problems_of(f"file = 'X'\n{text}") == []


@pytest.mark.parametrize(
    ("text", "hider", "hidden"),
    [
        ("[[rule]]\nfile='A'\n[[rule]]\nfile='B'", 0, "rule 2 is never asked"),
        (
            "[[rule]]\nflag='seen'\n[[rule]]\nfile='A'\n[[rule]]\nflag='seen'\n[[rule]]\nfile='B'",
            1,
            "3, 4",
        ),
        ("[[rule]]\nfile='A'\nsees='all'\n[[rule]]\nfile='B'\nsees='spam'", 0, "rule 2 is"),
        ("[[rule]]\nfile='A'\nstage='after'\n[[rule]]\nfile='B'\nstage='after'\nwhen={to='*'}", 0, "rule 2 is"),
        ("[[rule]]\nfile='B'\nstage='after'\nwhen={to='*'}\n[[rule]]\nfile='A'", 1, "rule 1 is"),
    ],
)
def test_a_rule_that_hides_others_is_named(text: str, hider: int, hidden: str) -> None:
    _, problems = read(text)
    assert [(problem.path, problem.warning) for problem in problems] == [(("rule", hider), True)]
    assert hidden in problems[0].text


@pytest.mark.parametrize(
    "text",
    [
        "[[rule]]\nflag='seen'\n[[rule]]\nfile='B'",
        "[[rule]]\nfile='A'\nwhen={to='*'}\n[[rule]]\nfile='B'",
        "[[rule]]\nfile='A'\n[[rule]]\nfile='B'\nsees='spam'",
        "[[rule]]\nfile='A'\n[[rule]]\nflag='seen'\nnever-spam=true",
        "[[rule]]\nfile='A'\nstage='after'\n[[rule]]\nfile='B'\nwhen={to='*'}",
    ],
)
def test_a_rule_that_hides_none_is_not_named(text: str) -> None:
    assert read(text)[1] == []


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Spam", "Lists.qmail", "INBOX", "Inbox", "a b", "2024", "C++", "x@y", "[Gmail].All", "a" * 200]
)
def test_names_that_all_imap_servers_show_alike_are_folders(name: str) -> None:
    assert folder_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        (".Spam", "Spam"),
        ("INBOX.Spam", "Spam"),
        ("inbox.Lists.x", "Lists.x"),
        ("Lists/qmail", "Lists.qmail"),
        ("INBOX/Lists/qmail", "Lists.qmail"),
        ("./Maildir/.Spam/", "Spam"),
        ("Maildir/.Lists.x", "Lists.x"),
        ("Spam.", "Spam"),
        (" Spam", "Spam"),
    ],
)
def test_a_folder_written_in_another_way_is_refused_with_the_right_one(name: str, instead: str) -> None:
    assert folder_problem(name).endswith(f'; write "{instead}"')


def test_control_characters_are_refused_wherever_they_stand_in_a_folder() -> None:
    for code in (*range(32), 127):
        assert folder_problem(f"a{chr(code)}b")
        assert folder_problem(f"a{chr(code)}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        "../..",
        "/",
        "Entwürfe",
        "a&b",
        "a%",
        "a*",
        "a:b",
        "a,b",
        "\x00",
        "a\x7f",
        "a" * 201,
    ],
)
def test_names_that_lead_out_or_that_servers_show_differently_are_refused(name: str) -> None:
    problem = folder_problem(name)
    assert problem
    assert "write" not in problem


def test_the_inbox_is_known_in_any_case() -> None:
    assert is_inbox("inbox")
    assert is_inbox("InBox")
    assert not is_inbox("Inbox2")


def test_a_field_name_is_what_rfc_5322_section_3_6_8_allows() -> None:
    allowed = {chr(code) for code in range(256) if FIELD_NAME.fullmatch(chr(code))}
    assert allowed == {chr(code) for code in range(33, 127)} - {":"}


# --- the walk ----------------------------------------------------------------------------------------------------

NOTHING = Walk((), (), "", b"", 0.0, rescued=False, rule="", spam=False)


def test_without_rules_nobody_places_the_message() -> None:
    assert ask(()) == (NOTHING, [])


def test_the_first_rule_that_places_the_message_ends_the_walk() -> None:
    said, steps = ask(
        rules(
            "[[rule]]\nname='one'\nflag='seen'\ncopy='Archive'\nadd-header={X-A='1'}\n"
            "[[rule]]\nfile='No'\nwhen={from='nobody@*'}\n"
            "[[rule]]\nname='three'\nfile='Boss'\nforward='x@example.org'\nflag=['flagged','seen']\ncopy='Two'\n"
            "add-header={X-B='2'}\nadd-score=1\nwhen={from='alice@*'}\n"
            "[[rule]]\nfile='Later'\nflag='draft'\n"
        )
    )
    assert said == Walk(
        placements=(Action(Verb.FILE, "Boss"), Action(Verb.FORWARD, "x@example.org")),
        copies=(Action(Verb.FILE, "Archive"), Action(Verb.FILE, "Two")),
        flags="FS",
        headers=b"X-A: 1\nX-B: 2\n",
        added=1.0,
        rescued=False,
        rule='rule "three"',
        spam=False,
    )
    assert len(steps) == 3


def test_rules_that_only_add_leave_the_message_without_a_place() -> None:
    said, _ = ask(rules("[[rule]]\nflag='seen'\n[[rule]]\ncopy='X'\n"))
    assert said == NOTHING._replace(flags="S", copies=(Action(Verb.FILE, "X"),))


@pytest.mark.parametrize(
    ("sees", "spam", "asked"),
    [
        ("ham", False, True),
        ("ham", True, False),
        ("spam", False, False),
        ("spam", True, True),
        ("all", False, True),
        ("all", True, True),
    ],
)
def test_a_rule_is_asked_about_what_it_sees(sees: str, spam: bool, asked: bool) -> None:
    said, (step,) = ask(rules(f"[[rule]]\nfile='X'\nsees='{sees}'"), facts(spam=spam))
    assert bool(said.placements) is asked
    assert said.spam is spam
    assert ("is passed over" in step) is not asked


def test_never_spam_sees_all_and_rescues() -> None:
    text = "[[rule]]\nnever-spam=true\nwhen={from='alice@*'}\n[[rule]]\nfile='Ham'\n"
    said, _ = ask(rules(text), facts(spam=True, score=9.0))
    assert (said.rescued, said.spam, said.placements) == (True, False, (Action(Verb.FILE, "Ham"),))
    said, _ = ask(rules(text.replace("alice", "nobody")), facts(spam=True, score=9.0))
    assert (said.rescued, said.spam, said.placements) == (False, True, ())


def test_a_rescued_message_stays_rescued_whatever_points_are_added() -> None:
    text = "[[rule]]\nnever-spam=true\nfile='X'\nadd-score=50\nwhen={spam=true}\n"
    said, _ = ask(rules(text), facts(spam=True, score=9.0))
    assert (said.rescued, said.spam, said.added) == (True, False, 50.0)
    said, _ = ask(rules("[[rule]]\nnever-spam=true\n[[rule]]\nadd-score=50\n"), facts(spam=True, score=9.0))
    assert (said.rescued, said.spam) == (True, False)


def test_added_points_count_for_what_follows() -> None:
    text = (
        "[[rule]]\nadd-score=3\n[[rule]]\nfile='Ham'\nwhen={score='>= 5'}\nsees='ham'\n"
        "[[rule]]\nfile='Junk'\nsees='spam'\nwhen={score='=6.5'}\n"
    )
    loaded, _ = read(text)
    said, _ = ask(loaded, facts(score=3.5))
    assert (said.placements, said.spam, said.added) == ((Action(Verb.FILE, "Junk"),), True, 3.0)
    said, _ = ask(rules("[[rule]]\nadd-score=-3\n[[rule]]\nfile='Ham'\n"), facts(score=6.0, spam=True))
    assert (said.placements, said.spam) == ((), True)  # the first rule sees only ham
    said, _ = ask(rules("[[rule]]\nadd-score=-3\nsees='all'\n[[rule]]\nfile='Ham'\n"), facts(score=6.0, spam=True))
    assert (said.placements, said.spam) == ((Action(Verb.FILE, "Ham"),), False)


def test_points_that_rules_add_are_a_score_where_the_scanner_gave_none() -> None:
    said, _ = ask(rules("[[rule]]\nadd-score=2\n[[rule]]\nfile='X'\nsees='all'\nwhen={score='= 2'}\n"))
    assert said.placements
    text = "[[rule]]\nadd-score=2\n[[rule]]\nadd-score=-2\n[[rule]]\nfile='X'\nsees='all'\nwhen={score='< 100'}\n"
    said, _ = ask(rules(text))
    assert not said.placements


def test_the_decision_is_asked_for_only_when_points_are_added() -> None:
    asked: list[float] = []

    def spam_at(added: float) -> bool:
        asked.append(added)
        return False

    loaded = rules("[[rule]]\nflag='seen'\n[[rule]]\nadd-score=1\n[[rule]]\nadd-score=-1\n[[rule]]\nflag='draft'\n")
    said = walk(loaded, facts(), spam_at, unheard)
    assert (asked, said.added) == ([1.0, 0.0], 0.0)


def test_every_rule_explains_itself_to_the_owner() -> None:
    _, steps = ask(
        rules(
            "[[rule]]\nname='lists'\nfile='L'\nwhen={list-id='*.other.example'}\n"
            "[[rule]]\nfile='L'\nwhen={header={X-None='*x*'}}\n"
            "[[rule]]\nfile='L'\nwhen={from='alice@*', subject={contains='invoice'}}\n"
            "[[rule]]\nfile='L'\nwhen={from='alice@*', not={to='bob@*'}}\n"
            "[[rule]]\nfile='L'\nwhen={any=[{cc='x@*'}, {size='> 5 MB'}]}\n"
            "[[rule]]\nname='office'\nfile='Office'\ncopy='x@example.org'\nflag='seen'\n"
            "when={from='alice@*', not={subject='*test*'}}\n"
        )
    )
    subject = f'subject is "{SUBJECT}"'
    assert steps == [
        'rule "lists" does not match: list-id is "announce.qmail.example", not like "*.other.example"',
        'rule 2 of mailfilter.toml does not match: there is no X-None (wanted: like "*x*")',
        f'rule 3 of mailfilter.toml does not match: {subject}, not containing "invoice"',
        'rule 4 of mailfilter.toml does not match: to is "bob@example.net", like "bob@*", and `not` excludes it',
        (
            'rule 5 of mailfilter.toml does not match: cc is "dave@example.com", not like "x@*"; '
            f"size is {len(MAIL)}, not > 5 MB"
        ),
        (
            f'rule "office" matches: from is "Alice@Example.org", like "alice@*"; {subject}, not like "*test*"; '
            "it marks it seen, copies it to x@example.org, files the message into Office"
        ),
    ]


def test_an_explanation_quotes_no_more_than_a_line_and_nothing_that_a_terminal_obeys() -> None:
    raw = b"Subject: \x1b[2J\x07" + b"x" * 5000 + b"\n\n"
    _, (step,) = ask(rules("[[rule]]\nfile='X'\nwhen={subject='*y*'}\n"), facts(message(raw)))
    assert step.isprintable()
    assert len(step) < 300
