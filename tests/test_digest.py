"""Each recipient is told once what was held, with nothing in it that harms; and held mail goes when its time is over."""

import email
import email.policy
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from main_job import own
from test_quarantine import held, put
from test_reply import RECORDER

from deliver.settings import Quarantine
from quarantine.digest import MOST_LISTED, SETTLED
from quarantine.files import Files
from quarantine.store import KINDS, Held

DAY = 86400.0


class Site:
    """One quarantine for the site, and a sendmail that writes down what it is given."""

    def __init__(self, directory: Path, settings: str = "", *, more: str = "") -> None:
        self.directory = directory
        self.quarantine = directory / "quarantine"
        self.archive = Files(str(directory), "quarantine")
        self.config = directory / "site.toml"
        self.config.write_text(f'[quarantine]\ndirectory = "{self.quarantine}"\n{settings}')
        for name in ("sent", "bin"):
            (directory / name).mkdir()
        program = directory / "bin" / "sendmail"
        program.write_text(RECORDER.format(directory=directory / "sent", more=more))
        program.chmod(0o755)

    def hold(self, text: bytes = b"Subject: x\n\nsecret body\n", **more: Any) -> Held:
        """A message, held an hour ago unless said otherwise."""
        return put(self.archive, held(self.directory, **{"time": time.time() - 3600, **more}), text)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quarantine", "--config", str(self.config), *arguments]
        path = f"{self.directory}/bin:/usr/bin:/bin"
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path, "TZ": "UTC"}
        )

    def sent(self) -> list[tuple[str, EmailMessage]]:
        """All letters with the command lines that sent them, by address."""
        found = []
        for path in (self.directory / "sent").iterdir():
            first, _, text = path.read_text().partition("\n")
            found.append((first, email.message_from_string(text, policy=email.policy.default)))
        return sorted(found, key=lambda one: one[0])  # type: ignore[return-value]


def words(one: EmailMessage, kind: str = "plain") -> str:
    part = one.get_body((kind,))
    assert part is not None
    return str(part.get_content())


def test_each_recipient_hears_of_their_own_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    mine = site.hold(subject="an invoice", sender="x@example.net")
    site.hold(recipient="else@example.org", subject="a letter")
    done = site.run("digest")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (first, theirs), (second, yours) = site.sent()
    assert (first, second) == ("-i -f <> -- else@example.org", "-i -f <> -- you@example.org")
    assert yours["Auto-Submitted"] == "auto-generated"
    assert yours["Subject"] == "1 message is held in quarantine"
    assert yours["From"] == "postmaster@example.org"
    for kind in ("plain", "html"):
        text = words(yours, kind)
        for part in ("an invoice", "x@example.net", "clamd found the virus X", mine.id, "30 days"):
            assert part in text, part
        assert "a letter" not in text
        assert "secret body" not in text
    assert "a letter" in words(theirs)
    assert site.run("digest").returncode == 0
    assert len(site.sent()) == 2


def test_what_comes_later_comes_with_the_next(tmp_path: Path) -> None:
    """A message whose writing may not be over yet waits."""
    site = Site(tmp_path)
    site.hold(time=time.time())
    site.run("digest")
    assert site.sent() == []
    site.hold(recipient="else@example.org")
    site.run("digest", "--recipient", "ELSE@*")
    memory = site.quarantine / "digest"
    (line,) = filter(None, memory.read_text().splitlines())
    told = json.loads(line)
    assert told["recipient"] == "else@example.org"
    assert abs(time.time() - SETTLED - told["upto"]) < 60
    memory.write_text(line.replace(str(told["upto"]), str(told["upto"] - DAY)) + "\n{cut")
    site.hold(recipient="else@example.org", subject="the next one")
    site.run("digest")
    assert any("the next one" in words(letter) for _, letter in site.sent())
    assert memory.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "subject",
    ["<script>alert(1)</script>", "\x1b[31mred", "a\nBcc: x@example.net", "\u202eexe.pdf", "x" * 5000, "Grüße"],
)
def test_subjects_are_shown_safely(tmp_path: Path, subject: str) -> None:
    site = Site(tmp_path)
    site.hold(subject=subject)
    dry = site.run("digest", "--dry-run")
    site.run("digest")
    ((_, one),) = site.sent()
    for text in (dry.stdout, words(one), words(one, "html")):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
        assert "x" * 300 not in text
    assert "<script>" not in words(one, "html")
    assert one["Bcc"] is None
    assert ("Grüße" in words(one)) == (subject == "Grüße")


def test_dry_run_prints_and_remembers_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.hold(subject="an invoice")
    for _ in range(2):
        done = site.run("digest", "--dry-run")
        assert (done.returncode, "an invoice" in done.stdout) == (0, True)
    assert site.sent() == []


def test_json(tmp_path: Path) -> None:
    site = Site(tmp_path)
    one = site.hold()
    (line,) = site.run("digest", "--json", "--dry-run").stdout.splitlines()
    said = json.loads(line)
    assert (said["recipient"], said["more"], said["error"]) == ("you@example.org", 0, "")
    assert said["messages"][0]["id"] == one.id


def test_one_that_cannot_be_sent_comes_again(tmp_path: Path) -> None:
    site = Site(tmp_path, more='case "$*" in *else@*) exit 75;; esac')
    site.hold()
    site.hold(recipient="else@example.org")
    site.hold(recipient="no address")
    done = site.run("digest")
    assert done.returncode == 1
    assert "else@example.org: " in done.stderr
    assert "no address: is no address" in done.stderr
    told = [json.loads(line)["recipient"] for line in (site.quarantine / "digest").read_text().split("\n") if line]
    assert told == ["you@example.org"]


def test_the_administrator_can_be_asked(tmp_path: Path) -> None:
    site = Site(tmp_path, "[notices]\nadmin = 'help@example.org'\n")
    one = site.hold()
    site.run("digest")
    ((_, letter),) = site.sent()
    assert "write to help@example.org" in words(letter)
    assert f'href="mailto:help@example.org?subject=release%20{one.id}"' in words(letter, "html")


def test_it_says_how_long_mail_is_held(tmp_path: Path) -> None:
    """For this recipient, by all that keep-by says of reasons."""
    site = Site(tmp_path)
    settings = site.config.read_text()
    site.hold()
    for more, days in (
        ("", "30"),
        ('keep-by = { virus = "7 d" }\n', "7 to 30"),
        ('keep-by = { virus = "7 d", "example.org" = "2 d" }\n', "2"),
    ):
        site.config.write_text(settings + more)
        assert f"deleted after some {days} days." in site.run("digest", "--dry-run").stdout


def test_only_so_many_are_listed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number in range(MOST_LISTED + 3):
        site.hold(subject=f"number {number}.", time=time.time() - 3600 + number)
    text = site.run("digest", "--dry-run").stdout
    assert "3 older ones are not listed" in text
    assert "number 2." not in text
    assert f"number {MOST_LISTED + 2}." in text


def test_two_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.hold()
    directory = os.open(site.quarantine, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    done = site.run("digest")
    os.close(directory)
    assert (done.returncode, "another digest" in done.stderr, site.sent()) == (1, True, [])
    assert site.run("digest").returncode == 0


def test_all_mailboxes_of_a_tree(scratch: Path) -> None:
    """Each has a quarantine of its own, and what is made there is its owner's."""
    site = Site(scratch)
    site.config.write_text("")
    site.config.write_text("[quarantine]\n")
    tree = scratch / "domains"
    for user in ("anna", "berta"):
        maildir = tree / "example.org" / user / "Maildir"
        for part in ("new", "cur", "tmp", "deliver"):
            (maildir / part).mkdir(parents=True)
        one = held(maildir, recipient=f"{user}@example.org", time=time.time() - 40 * DAY)
        put(Files(str(maildir), "deliver/quarantine"), one)
    (tree / "example.org" / "none" / "Maildir" / "new").mkdir(parents=True)
    (scratch / "sent").chmod(0o777)
    own(tree)
    done = site.run("digest", str(tree))
    assert (done.returncode, done.stderr) == (0, "")
    assert [first.split()[-1] for first, _ in site.sent()] == ["anna@example.org", "berta@example.org"]
    owner = (tree / "example.org").stat().st_uid
    assert {path.stat().st_uid for path in tree.rglob("*")} == {owner}
    assert site.run("expire", str(tree)).returncode == 0
    assert list(tree.rglob("held/*.json")) == []


# --- how long held mail stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "findings", "kind"),
    [
        ("clamd found the virus X", ["virus"], "virus"),
        ("attachments: Forbidden (a.exe)", ["policy", "spam"], "policy"),
        ("spamd did not scan it: spamd: it is larger than 256 KiB", ["skipped"], "unscanned"),
        ("spam with 8 points; the mailbox is full (x)", ["spam"], "spam"),
        ('rule "no"', ["clean"], "rule"),
        ('rule "no"', ["spam"], "spam"),
        ("the owner wants to see it", ["virus"], "virus"),
    ],
)
def test_kinds_of_reasons(reason: str, findings: list[str], kind: str) -> None:
    verdicts = tuple({"scanner": "x", "finding": finding} for finding in findings)
    assert held("/nowhere", reason=reason, verdicts=verdicts).kind == kind
    assert kind in KINDS


@pytest.mark.parametrize(
    ("keys", "days"),
    [
        ([], 30),
        (["spam"], 30),
        (["virus"], 1),
        (["virus", "example.org"], 2),
        (["virus", "example.org", "you@example.org"], 3),
        (["you@example.org", "virus example.org"], 2),
        (["virus example.org", "virus you@example.org"], 2),
        (["example.com", "virus example.com"], 30),
    ],
)
def test_the_most_specific_key_decides(keys: list[str], days: int) -> None:
    kept = Quarantine(keep_by={key: (index + 1) * DAY for index, key in enumerate(keys)})  # type: ignore[misc]
    assert kept.keep_for("virus", "You@example.org") == days * DAY


def test_expire_goes_by_reason_and_domain(tmp_path: Path) -> None:
    site = Site(tmp_path)
    text = 'keep-by = { virus = "7 d", spam = "14 d", "example.org" = "90 d", "virus example.org" = "3 d" }\n'
    site.config.write_text(site.config.read_text() + text)
    spam: dict[str, Any] = {"reason": "spam with 8 points; full", "verdicts": ({"finding": "spam"},)}
    other = {"recipient": "a@example.com"}

    def days(number: float) -> dict[str, float]:
        return {"time": time.time() - number * DAY}

    gone = [
        site.hold(**other, **days(8)),
        site.hold(**other, **spam, **days(15)),
        site.hold(**days(4)),
        site.hold(**spam, **days(91)),
        site.hold(**other, reason='rule "x"', verdicts=(), **days(31)),
    ]
    stay = [
        site.hold(**other, **days(6)),
        site.hold(**other, **spam, **days(13)),
        site.hold(**days(2)),
        site.hold(**spam, **days(89)),
        site.hold(**other, reason='rule "x"', verdicts=(), **days(29)),
    ]
    shown = site.run("expire", "--dry-run").stdout
    assert {one.id for one in gone} == {line.split()[0] for line in shown.splitlines()}
    assert site.run("expire").returncode == 0
    assert sorted(site.archive.ids()) == sorted(one.id for one in stay)


def test_an_index_of_before_is_filled_anew(tmp_path: Path) -> None:
    """One that an earlier version made knows no kinds."""
    import sqlite3

    site = Site(tmp_path)
    site.config.write_text(site.config.read_text() + 'keep-by = { virus = "1 s" }\n')
    one = site.hold()
    database = sqlite3.connect(site.quarantine / "index.sqlite")
    from quarantine.sqlite import _MIGRATIONS

    database.executescript(f"{_MIGRATIONS[0]} PRAGMA user_version = 1;")
    row = (one.id, "held", "you@example.org", "", "", "", one.time, 1, "x")
    database.execute("INSERT INTO envelope VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()
    assert site.run("expire").returncode == 0
    assert site.archive.ids() == []
