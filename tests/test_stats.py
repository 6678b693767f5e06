"""The log is summed up right, whatever stands before its lines and however many there are."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scanned import content

from deliver import log
from deliver.actions import summary
from deliver.admin.stats import Stats, Times
from deliver.commands import cli
from deliver.pipeline import record
from deliver.values import Action, Envelope, Finding, Outcome, Plan, Reply, Verb, Verdict

DAY = 86400
NOON = 1_795_348_800.0  # 2026-11-22 12:00 UTC
SPAM = Verdict("spamd", Finding.SPAM, score=9.0, required=5.0, seconds=0.5)
HAM = Verdict("spamd", Finding.CLEAN, score=0.1, required=5.0, seconds=0.1)
VIRUS = Verdict("clamd", Finding.VIRUS, names=("Eicar",), seconds=0.01)
CLEAN = Verdict("clamd", Finding.CLEAN, seconds=0.01)
DOWN = Verdict("clamd", Finding.FAILED, reason="clamd did not answer", seconds=150)


def line(
    *actions: Action,
    verdicts: tuple[Verdict, ...] = (),
    spam: bool = False,
    code: int = 0,
    days: float = 0,
    **more: Any,
) -> dict[str, Any]:
    """What a delivery logs, by the very function that does."""
    plan = Plan(actions, "because", spam=spam)
    envelope = Envelope("a@example.net", more.pop("to", "you@example.org"), "/nowhere")
    said = record(envelope, content(b"x" * 100), verdicts, Outcome(Reply(code), plan), False)  # type: ignore[arg-type]
    return {"time": NOON + days * DAY, **said, **more}


LINES = [
    line(Action(Verb.FILE, "INBOX"), verdicts=(CLEAN, HAM)),
    line(Action(Verb.FILE, "Lists.x"), verdicts=(CLEAN, HAM)),
    line(Action(Verb.FILE, "Spam"), verdicts=(CLEAN, SPAM), spam=True),
    line(Action(Verb.QUARANTINE), verdicts=(VIRUS, HAM)),
    line(Action(Verb.FORWARD, "b@example.net"), verdicts=(CLEAN, HAM), days=1),
    line(Action(Verb.FORWARD, "b@example.net"), Action(Verb.FILE, "INBOX"), days=1),
    line(Action(Verb.PIPE, "ticket"), days=1),
    line(Action(Verb.DISCARD), verdicts=(SPAM,), spam=True, days=1),
    line(Action(Verb.BOUNCE), code=100, days=2, to="full@example.org"),
    line(Action(Verb.DEFER), verdicts=(DOWN,), code=75, days=2),
    {"time": NOON, "level": "warning", "recipient": "you@example.org", "detail": "no quota\nat all"},
]


def text(lines: list[dict[str, Any]], prefix: str = "") -> str:
    return "".join(f"{prefix}{json.dumps(one)}\n" for one in lines)


def stats(*arguments: str, stdin: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["stats", *arguments], input=stdin)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "prefix", ["", "Nov 22 12:00:00 mx deliver[4711]: ", "<22>1 2026-11-22T12:00:00Z mx deliver - - "]
)
def test_counts_by_outcome(prefix: str) -> None:
    code, output = stats("--json", "-", stdin=text(LINES, prefix))
    assert code == 0
    said = json.loads(output)
    assert said["outcomes"] == {
        "inbox": 2, "folder": 1, "spam": 1, "held": 1, "forwarded": 1, "program": 1, "discarded": 1, "bounced": 1,
        "deferred": 1,
    }  # fmt: skip
    assert (said["messages"], said["spam"], said["viruses"], said["warnings"]) == (10, 2, 1, 1)
    assert said["bytes"] == 1000
    assert said["recipients"] == {"you@example.org": 9, "full@example.org": 1}
    assert said["names"] == {"Eicar": 1}
    assert said["failures"] == {"clamd did not answer": 1, "no quota": 1}
    assert said["scanners"]["clamd"]["findings"] == {"clean": 4, "virus": 1, "failed": 1}
    assert [(day["messages"], day.get("spam", 0)) for day in said["days"].values()] == [(4, 1), (4, 1), (2, 0)]
    assert (said["first"], said["last"]) == (NOON, NOON + 2 * DAY)


def test_findings_of_policy_are_counted() -> None:
    one = line(Action(Verb.QUARANTINE))
    one["verdicts"] = [{"scanner": "attachments", "finding": "policy", "ms": 1.0}]
    said = json.loads(stats("--json", "-", stdin=text([one]))[1])
    assert (said["policy"], [day["policy"] for day in said["days"].values()]) == (1, [1])


def test_times_are_right_to_a_few_percent() -> None:
    """The nearest rank: of 1 to 1000 ms half are at most 500, and 95 % at most 950."""
    times = Times()
    for ms in range(1, 1001):
        times.add(ms)
    assert times.below(0.5) == pytest.approx(500, rel=0.03)
    assert times.below(0.95) == pytest.approx(950, rel=0.03)
    assert Times().below(0.5) == 0


def test_the_scanners_times_come_from_their_verdicts() -> None:
    lines = [line(Action(Verb.FILE, "INBOX"), verdicts=(HAM,))] * 9 + [
        line(Action(Verb.FILE, "INBOX"), verdicts=(HAM._replace(seconds=30),))
    ]
    said = json.loads(stats("--json", "-", stdin=text(lines))[1])["scanners"]["spamd"]
    assert said["count"] == 10
    assert said["median"] == pytest.approx(100, rel=0.03)
    assert said["95th"] == pytest.approx(30_000, rel=0.03)


@pytest.mark.parametrize(
    "rubbish",
    [
        '{"time": 1',
        '{"time": "yesterday"}',
        '{"time": 1e99, "actions": []}',
        f'{{"time": 1{"0" * 400}, "actions": []}}',
        '{"time": 5, "actions": 7, "verdicts": [{"ms": NaN}]}',
        "no json",
        '{"other": 1}',
        "[1, 2]",
        '{"time": 5, "actions": 7, "verdicts": [3, {"ms": "x", "names": 4, "finding": "virus"}], "size": "x"}',
        "{" * 5000,
    ],
)
def test_rubbish_is_passed_over(rubbish: str) -> None:
    code, output = stats("--json", "-", stdin=f"{rubbish}\n{text(LINES[:1])}")
    assert code == 0
    assert json.loads(output)["outcomes"]["inbox"] == 1


def test_a_line_that_syslog_cut_is_counted() -> None:
    said = json.loads(stats("--json", "-", stdin=f"mx deliver[1]: {text(LINES)[:300]}\n")[1])
    assert said["unreadable"] == 1


def test_memory_does_not_grow_with_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line with a new recipient and a new virus: five times as many take no more than those that are kept."""
    monkeypatch.setattr("deliver.admin.stats._MOST_NAMES", 300)

    def lines(number: int) -> Iterator[bytes]:
        for index in range(number):
            one = {**LINES[3], "recipient": f"user{index}@example.org"}
            one["verdicts"] = [{"scanner": "clamd", "finding": "virus", "names": [f"Virus.{index}"], "ms": index % 900}]
            yield json.dumps(one).encode()

    peaks = []
    for number in (1_000, 5_000):
        found = Stats()
        tracemalloc.start()
        found.read(lines(number))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.messages == number
    assert peaks[1] < 1.2 * peaks[0]


def test_what_is_frequent_stays_at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliver.admin.stats._MOST_NAMES", 300)
    found = Stats()
    lines = [{**LINES[0], "recipient": f"user{index}@example.org"} for index in range(3_000)]
    for index in range(0, 3_000, 10):
        lines[index]["recipient"] = "busy@example.org"
    found.read(json.dumps(one).encode() for one in lines)
    assert next(iter(found.summary()["recipients"].items())) == ("busy@example.org", 300)


def test_the_log_of_the_configuration_is_the_default(tmp_path: Path) -> None:
    """As log.py itself has written it."""
    path, config = tmp_path / "log", tmp_path / "site.toml"
    config.write_text(f"[log]\nto = '{path}'\n")
    log.to(str(path))(recipient="you@example.org", actions=["file INBOX"], verdicts=[summary(CLEAN)], size=5)
    code, output = stats("--config", str(config))
    assert (code, "1 deliveries" in output, "inbox 1" in output) == (0, True, True)
    path.unlink()
    code, output = stats("--config", str(config))
    assert (code, str(path) in output) == (1, True)


def test_a_log_in_syslog_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "site.toml"
    config.write_text("[log]\n")
    code, output = stats("--config", str(config))
    assert (code, "journalctl" in output) == (1, True)


def test_words_are_safe_for_a_terminal() -> None:
    one = line(Action(Verb.FILE, "INBOX"), to="\x1b[31m@example.org")
    assert "\x1b" not in stats("-", stdin=text([one]))[1]


def test_an_empty_log_says_so() -> None:
    assert stats("-", stdin="") == (0, "no deliveries in the log\n")
