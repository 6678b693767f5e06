"""[[scanner]]: its configuration, what policy makes of several scanners, and pools that remember who has failed."""

import asyncio
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from deliver import config, header_lines, wiring
from deliver.message import Framing, Message, Source
from deliver.policy import Case, decide
from deliver.scanners.address import TcpAddress
from deliver.scanners.command import PRESETS, Command
from deliver.scanners.icap import Icap
from deliver.scanners.pool import REST, Health, first_answer
from deliver.scanners.rspamd import Rspamd
from deliver.settings import KINDS_OF_SCANNER as KINDS
from deliver.settings import Config
from deliver.tables import convert
from deliver.values import Envelope, Finding, Plan, Problem, Verb, Verdict, unheard

DOCS = Path(__file__).resolve().parent.parent / "docs"
ONE, TWO = TcpAddress("one", 1), TcpAddress("two", 2)


def read(text: str) -> tuple[Config, list[str]]:
    """The configuration, and its problems as people read them."""
    settings, problems = config.parse(text.encode(), "site.toml")
    assert settings is not None
    return settings, [config.where(problem) + problem.text for problem in problems]


# The configuration.


def test_each_kind_becomes_its_scanner() -> None:
    settings, problems = read(
        "[spam]\ndelete-above = 15.0\n"
        '[[scanner]]\nname = "clam"\nkind = "command"\npreset = "clamscan"\n'
        '[[scanner]]\nname = "gateway"\nkind = "icap"\naddress = "tcp:[::1]:1344"\nmax-size = "1 MiB"\n'
        '[[scanner]]\nname = "rspamd"\nkind = "rspamd"\naddress = ["unix:/a", "unix:/b"]\n'
    )
    assert problems == []
    found = wiring.scanners(settings)
    assert [(type(one), one.name, one.max_size) for one in found] == [
        (Command, "clam", 25 * 1024**2),
        (Icap, "gateway", 1024**2),
        (Rspamd, "rspamd", 10 * 1024**2),
    ]


def test_a_command_of_ones_own_and_one_that_changes_a_preset(tmp_path: Path) -> None:
    (tmp_path / "Maildir" / "tmp").mkdir(parents=True)
    settings, problems = read(
        '[[scanner]]\nname = "own"\nkind = "command"\ncommand = ["sh", "-c", "echo is Evil; exit 7"]\n'
        'codes = { 0 = "clean", 7 = "virus" }\npattern = "is (.+)"\n'
        '[[scanner]]\nname = "sophos"\nkind = "command"\npreset = "savscan"\ncommand = ["sh", "-c", "exit 2"]\n'
        'codes = { 2 = "skipped" }\n'
    )
    assert problems == []
    message = Message(Source.of(b"Subject: x\n\nx\n"), Framing())
    envelope = Envelope("", "b@x", str(tmp_path / "Maildir"))
    verdicts = [asyncio.run(one.scan(message, envelope)) for one in wiring.scanners(settings)]
    assert [(one.scanner, one.finding, one.names) for one in verdicts] == [
        ("own", Finding.VIRUS, ("Evil",)),
        ("sophos", Finding.SKIPPED, ()),
    ]


def test_the_presets_are_those_that_can_be_named() -> None:
    field = next(field for field in msgspec.structs.fields(KINDS["command"]) if field.name == "preset")
    assert set(field.type.__args__) == {"", *PRESETS}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scanner = 1", "scanner: is an array of tables: write [[scanner]]"),
        ("[scanner]\nkind = 'icap'", "scanner: is an array of tables: write [[scanner]]"),
        ("[[scanner]]\nname = 'a'", "scanner 1: kind: expected a table with one of command, icap, rspamd as its kind"),
        ("[[scanner]]\nkind = 'milter'", "scanner 1: kind: expected a table with one of command, icap, rspamd"),
        ("[[scanner]]\nkind = 'icap'", "scanner 1: name: each scanner needs a name"),
        ("[[scanner]]\nkind = 'icap'\nname = 'a b'", "scanner 1: name: each scanner needs a name"),
        ("[[scanner]]\nkind = 'icap'\nname = 'clamd'", 'scanner 1: name: another scanner has the name "clamd"'),
        (
            "[[scanner]]\nkind = 'icap'\nname = 'a'\n[[scanner]]\nkind = 'rspamd'\nname = 'a'",
            'scanner 2: name: another scanner has the name "a" already',
        ),
        (
            "[[scanner]]\nkind = 'icap'\nname = 'a'\non-vrus = 'mark'",
            'has no key of this name; did you mean "on-virus"?',
        ),
        ("[[scanner]]\nkind = 'rspamd'\nname = 'a'\non-virus = 'mark'", "scanner 1: on-virus: [[scanner]] has no key"),
        ("[[scanner]]\nkind = 'icap'\nname = 'a'\naddress = 'icap://x'", "scanner 1: address: expected"),
        ("[[scanner]]\nkind = 'icap'\nname = 'a'\nservice = 'a b'", "scanner 1: service: expected the last part"),
        ("[[scanner]]\nkind = 'command'\nname = 'a'", "scanner 1: command: expected a list"),
        ("[[scanner]]\nkind = 'command'\nname = 'a'\ncommand = ['x']", "scanner 1: codes: expected the exit codes"),
        (
            "[[scanner]]\nkind = 'command'\nname = 'a'\npreset = 'clamscan'\ncodes = { 256 = 'virus' }",
            'scanner 1: codes: expected exit codes from "0" to "255", got "256"',
        ),
        (
            "[[scanner]]\nkind = 'command'\nname = 'a'\npreset = 'clamscan'\ncodes = { 1 = 'bad' }",
            "scanner 1: codes: ",
        ),
        (
            "[[scanner]]\nkind = 'command'\nname = 'a'\npreset = 'clamscan'\npattern = '('",
            "scanner 1: pattern: is refused: missing )",
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    assert any(words in said for said in read(f"{text}\n")[1]), read(f"{text}\n")[1]


def documented(kind: str) -> dict[str, str]:
    """The keys in the section of a kind in configuration.md, with the defaults that stand there."""
    heading = f'`kind = "{kind}"`'
    section = (DOCS / "configuration.md").read_text().partition(f"\n#### {heading}\n")[2].partition("\n#")[0]
    return dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\| (?:`(.*?)`)? ?\|", section, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_documented_with_its_default(kind: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(KINDS[kind])}
    assert documented(kind).keys() == fields.keys() - {"kind"}
    for key, default in documented(kind).items():
        if default:
            problems: list[Problem] = []
            said = convert(KINDS[kind], tomllib.loads(f"{key} = {default}"), (), problems)
            assert (problems, said) == ([], {fields[key].name: getattr(KINDS[kind](), fields[key].name)}), key


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_in_the_manual_page(kind: str) -> None:
    text = (DOCS / "mailfilter.toml.5").read_text().partition(".Ss [[scanner]]\n")[2].partition("\n.Ss ")[0]
    section = text.partition(f"kind = \\(dq{kind}\\(dq")[2].partition("kind = \\(dq")[0]
    assert re.findall(r"^\.It Ic ([a-z-]+) ", section, re.MULTILINE) == list(documented(kind))


# What policy makes of several.


class Roomy:
    """A mailbox without a quota."""

    def has_folder(self, _name: str) -> bool:
        return False

    def over_quota(self, _sizes: list[tuple[str, int]]) -> str:
        return ""


SITE = """
[clamd]
on-virus = "mark"
[spamd]
[[scanner]]
name = "sophos"
kind = "command"
preset = "savscan"
[[scanner]]
name = "gateway"
kind = "icap"
on-failure = "quarantine"
on-virus = "discard"
[[scanner]]
name = "rspamd"
kind = "rspamd"
"""


def plan(*verdicts: Verdict) -> Plan:
    settings = read(SITE)[0]
    message = Message(Source.of(b"Subject: x\n\nx\n"), Framing())
    envelope = Envelope("a@x", "b@x", "/nowhere/Maildir")
    return decide(Case(message, envelope, verdicts, settings, settings.spam, (), "", Roomy(), 0.0), unheard)


CLEAN = Verdict("clamd", Finding.CLEAN)


@pytest.mark.parametrize(
    ("verdict", "verb"),
    [
        (Verdict("clamd", Finding.VIRUS, ("A",)), Verb.FILE),
        (Verdict("sophos", Finding.VIRUS, ("A",)), Verb.QUARANTINE),
        (Verdict("gateway", Finding.VIRUS, ("A",)), Verb.DISCARD),
        (Verdict("sophos", Finding.FAILED, reason="down"), Verb.DEFER),
        (Verdict("gateway", Finding.FAILED, reason="down"), Verb.QUARANTINE),
        (Verdict("rspamd", Finding.FAILED, reason="down"), Verb.FILE),
        (Verdict("gateway", Finding.SKIPPED, reason="large"), Verb.FILE),
    ],
)
def test_each_scanner_has_its_own_settings(verdict: Verdict, verb: Verb) -> None:
    assert [action.verb for action in plan(CLEAN, verdict).actions] == [verb]


def test_a_marked_virus_does_not_hide_one_that_is_not() -> None:
    both = plan(Verdict("clamd", Finding.VIRUS, ("A",)), Verdict("gateway", Finding.VIRUS, ("B",)))
    assert both.actions[0].verb is Verb.DISCARD
    assert b"X-Virus-Status: Infected (A, B)\n" in both.headers


def test_the_worst_of_all_is_told() -> None:
    failed = Verdict("sophos", Finding.FAILED, reason="sophos failed")
    skipped = Verdict("gateway", Finding.SKIPPED, reason="larger than 5 MiB")
    infected = Verdict("gateway", Finding.VIRUS, ())
    said = [
        header_lines.virus_status(verdicts)
        for verdicts in ((CLEAN,), (CLEAN, skipped), (skipped, failed, CLEAN), (CLEAN, failed, infected))
    ]
    assert said == [
        b"X-Virus-Status: Clean\n",
        b"X-Virus-Status: Not scanned (larger than 5 MiB)\n",
        b"X-Virus-Status: Not scanned (sophos failed)\n",
        b"X-Virus-Status: Infected ()\n",
    ]


def test_one_scanner_for_spam_is_enough() -> None:
    """The first that says spam counts, with its own lines; where none does, the first that has a score."""
    ham = Verdict("spamd", Finding.CLEAN, score=1.0, required=5.0, headers=b"X-Spam-Status: No, spamd\n")
    spam = Verdict("rspamd", Finding.SPAM, score=7.0, headers=b"X-Spam-Status: Yes, rspamd\n")
    both = plan(CLEAN, ham, spam)
    assert (both.spam, both.score, both.actions[0].target) == (True, 7.0, "Spam")
    assert both.headers.count(b"X-Spam-Status") == 1
    assert b"Yes, rspamd" in both.headers
    down = Verdict("spamd", Finding.FAILED, reason="spamd did not answer")
    assert b"X-Spam-Status: Yes, rspamd\n" in plan(CLEAN, down, spam).headers
    neither = plan(CLEAN, down, Verdict("rspamd", Finding.SKIPPED, reason="large"))
    assert b"X-Spam-Status: Not scanned (spamd did not answer)\n" in neither.headers


def test_forged_lines_are_removed_whoever_scans() -> None:
    def kept(text: str) -> bytes:
        names, prefixes, _ = wiring.forgeries(read(text)[0])
        return b" ".join(sorted({*names, *prefixes}))

    assert kept("[log]\n") == b"x-filter-error"
    assert b"x-virus-status" in kept('[[scanner]]\nname = "a"\nkind = "command"\npreset = "clamscan"\n')
    assert b"x-spam-" in kept('[[scanner]]\nname = "a"\nkind = "rspamd"\n')


def test_a_trusted_header_counts_for_nothing_beside_rspamd() -> None:
    text = '[spam]\ntrust-header = "X-Spam-Status"\n[[scanner]]\nname = "a"\nkind = "rspamd"\n'
    settings, problems = read(text)
    assert [one.name for one in wiring.scanners(settings)] == ["a"]
    assert problems[:1] == ["[spam] trust-header: counts for nothing where spamd or rspamd is configured"]


@pytest.mark.parametrize(
    ("kind", "above", "warned"),
    [("rspamd", "", True), ("rspamd", "12", True), ("rspamd", "15", False), ("icap", "", False)],
)
def test_rspamds_points_are_not_those_of_spamassassin(kind: str, above: str, warned: bool) -> None:
    """rspamd's own `reject` is 15: at 13.2 of 15 it says "add header", and the default of delete-above deletes."""
    text = (f"[spam]\ndelete-above = {above}\n" if above else "") + f'[[scanner]]\nname = "a"\nkind = "{kind}"\n'
    text += 'service = "x"\n' if kind == "icap" else ""
    problems = read(text)[1]
    assert ["scanner 1: [spam] delete-above is 12, " in one for one in problems] == [True] * warned


# Pools with health.


def test_who_has_failed_is_asked_last_for_a_while() -> None:
    now = 100.0
    health = Health(lambda: now)
    assert health.in_order([ONE, TWO]) == [ONE, TWO]
    health.failed(ONE)
    assert health.in_order([ONE, TWO]) == [TWO, ONE]
    now += REST - 0.1
    assert health.in_order([ONE, TWO]) == [TWO, ONE]
    now += 0.2
    assert health.in_order([ONE, TWO]) == [ONE, TWO]
    assert health.in_order([ONE, TWO]) == [TWO, ONE], "one caller tries it; the others wait for what comes of it"
    health.answered(ONE)
    assert health.in_order([ONE, TWO]) == [ONE, TWO]


def test_where_all_have_failed_all_are_asked() -> None:
    health = Health(lambda: 0.0)
    health.failed(ONE)
    health.failed(TWO)
    assert health.in_order([ONE, TWO]) == [ONE, TWO]


def test_first_answer_remembers() -> None:
    asked = []

    async def ask(address: TcpAddress, _deadline: float) -> str:
        asked.append(address.host)
        if address is ONE and len(asked) < 4:
            raise ConnectionRefusedError
        return address.host

    async def three() -> list[str]:
        health = Health()
        return [await first_answer("x", [ONE, TWO], 5, ask, health) for _ in range(3)]

    assert asyncio.run(three()) == ["two", "two", "two"]
    assert asked == ["one", "two", "two", "two"]
