"""What people moved is told to a real spamd, once; what they moved back, anew; and nothing that says nothing."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from click.testing import CliRunner
from main_job import own
from test_quarantine import held, put

from deliver import config as configuration
from deliver import wiring
from deliver.admin import learn as work
from deliver.admin.qmailfile import open_directory
from deliver.admin.whose import whose
from deliver.commands import cli
from deliver.errors import Deferred
from deliver.settings import Config
from deliver.values import Content
from quarantine.commands import cli as quarantine_cli
from quarantine.files import Files

DAY = 86400

# spamd's own lines on what it called spam (Mail::SpamAssassin::Conf, add_header), which we store before the message.
FLAGGED = "X-Spam-Flag: YES\nX-Spam-Status: Yes, score=9.1 required=5.0 tests=A autolearn=no\n"


@pytest.fixture(name="teaching", scope="module")
def start() -> Iterator[servers.Server]:
    """A spamd that takes lessons, with Bayes data of its own."""
    with (
        servers.scratch() as directory,
        servers.spamd(directory, "--allow-tell", "--cf=bayes_path {home}/bayes", "--cf=bayes_auto_learn 0") as server,
    ):
        yield server


def learned(server: servers.Server) -> tuple[int, int]:
    """How many messages spamd has learned as spam and as ham, by sa-learn(1)."""
    path = server.log.parent / "bayes"
    command = [servers.needs("sa-learn"), "--dbpath", str(path), "--dump", "magic"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(path.parent)}
    )
    counts = {line.split()[-1]: int(line.split()[2]) for line in done.stdout.splitlines()}
    return counts["nspam"], counts["nham"]


class Mailbox:
    """A Maildir of the unprivileged user, and what a spamd that is not there was told of it."""

    def __init__(self, top: Path, name: str = "you") -> None:
        self.top = top
        self.home = top / name
        self.maildir = self.home / "Maildir"
        self.number = 0
        self.told: list[tuple[str, bool]] = []
        self.fails: Callable[[], object] = lambda: None
        for folder in ("", ".Spam", ".Junk", ".Trash", ".Sent", ".Drafts", ".Work", ".Lists.spamassassin"):
            for part in ("new", "cur", "tmp"):
                (self.maildir / folder / part).mkdir(parents=True)

    def message(self, where: str, info: str = ":2,S", ours: str = "", subject: str = "") -> Path:
        """A message in a folder's part, with header lines of ours."""
        self.number += 1
        words = subject or f"number {self.number}"
        (self.maildir / where).mkdir(parents=True, exist_ok=True)
        path = self.maildir / where / f"{self.number}.P1.{self.home.name}{info}"
        path.write_text(
            f"Return-Path: <a@example.net>\nDelivered-To: you@example.org\n{ours}From: a@example.net\n"
            f"To: you@example.org\nSubject: {words}\nMessage-ID: <{words.replace(' ', '.')}@example.net>\n"
            f"Date: Sun, 22 Nov 2026 10:00:00 +0000\n\nDear reader of {words}, this is the text of it.\n"
        )
        own(self.top)
        return path

    def teach(self, content: Content, _recipient: str, spam: bool) -> bool:
        self.fails()
        text = b"".join(content.chunks()).decode()
        self.told.append((text.partition("Subject: ")[2].partition("\n")[0], spam))
        return True

    def learn(self, settings: str = "", days: float = 0, *, dry_run: bool = False) -> work.Result:
        """As the command does for one Maildir, some days from now: ctime cannot be set."""
        found = site(settings)
        top = open_directory(str(self.top))
        try:
            path, now = f"{self.home.name}/Maildir", time.time() + days * DAY
            return work.learn(top, path, str(self.maildir), found, self.teach, now, dry_run=dry_run)
        finally:
            os.close(top)

    def move(self, path: Path, where: str) -> Path:
        """As an IMAP server does."""
        path = path.rename(self.maildir / where / path.name)
        self.touch(path)
        return path

    def touch(self, path: Path) -> None:
        """Change it later than what was looked at last: the clock of files ticks in milliseconds."""
        memory = self.maildir / "deliver" / "learned"
        upto = int(memory.read_text().split()[-1]) if memory.exists() else 0

        def later() -> bool:
            os.utime(path)
            return path.stat().st_ctime_ns > upto

        servers.wait_for(later)


def site(settings: str = "") -> Config:
    text = settings if "[learn]" in settings else f"{settings}\n[learn]\npause = '0 s'\nafter = '0 s'\n"
    found, problems = configuration.parse(f"{text}\n[spamd]\n".encode(), "site.toml")
    assert problems == []
    assert found is not None
    return found


@pytest.fixture
def mailbox(scratch: Path) -> Mailbox:
    return Mailbox(scratch)


@pytest.mark.parametrize(
    ("where", "info", "ours", "says"),
    [
        (".Spam/cur", ":2,S", "", "spam"),
        (".Spam/cur", ":2,", "", "spam"),
        (".Spam/new", "", "", "spam"),
        (".Junk/cur", ":2,S", "", "spam"),
        ("cur", ":2,S", FLAGGED, "ham"),
        (".Work/cur", ":2,S", FLAGGED, "ham"),
        (".Work/cur", ":2,RS", "X-Spam-Status: Yes, score=7\n", "ham"),
        # As it was filed.
        (".Spam/cur", ":2,S", FLAGGED, ""),
        ("cur", ":2,S", "", ""),
        # No evidence: nobody has read it, it is marked as deleted, or it lies where everything may lie.
        ("cur", ":2,", FLAGGED, ""),
        ("new", "", FLAGGED, ""),
        ("cur", ":2,ST", FLAGGED, ""),
        (".Spam/cur", ":2,ST", "", ""),
        (".Trash/cur", ":2,S", FLAGGED, ""),
        (".Sent/cur", ":2,S", FLAGGED, ""),
        (".Drafts/cur", ":2,S", FLAGGED, ""),
        (".Lists.spamassassin/cur", ":2,S", FLAGGED, ""),
        (".Courrier ind&AOk-sirable/cur", ":2,S", FLAGGED, ""),
        (".Unerw&APw-nschte Werbung/cur", ":2,S", FLAGGED, ""),
        (".Skr&AOQ-ppost/cur", ":2,S", FLAGGED, ""),
    ],
)
def test_what_a_message_says_by_where_it_lies(mailbox: Mailbox, where: str, info: str, ours: str, says: str) -> None:
    mailbox.message(where, info, ours)
    result = mailbox.learn()
    assert (result.why, result.told) == ("", {says: 1} if says else {})
    assert mailbox.told == ([("number 1", says == "spam")] if says else [])


def test_our_lines_are_not_told(mailbox: Mailbox) -> None:
    """spamd hears of the message as it was scanned: our verdict is no token of anybody's spam."""
    seen: list[bytes] = []
    mailbox.message("cur", ours=FLAGGED + "X-Virus-Status: Clean\n")
    config = "[clamd]\n"
    mailbox.teach = lambda content, _to, _spam: bool(seen.append(b"".join(content.chunks()))) or True  # type: ignore[method-assign]
    mailbox.learn(config)
    assert seen[0].startswith(b"Return-Path: <a@example.net>\nFrom:")


def test_once_each_and_anew_when_it_is_moved_back(mailbox: Mailbox) -> None:
    path = mailbox.message("cur")
    path = mailbox.move(path, ".Spam/cur")
    assert mailbox.learn().told == {"spam": 1}
    assert mailbox.learn().told == {}
    path = mailbox.move(path, "cur")
    assert mailbox.learn().told == {"ham": 1}
    mailbox.move(path, ".Work/cur")
    assert mailbox.learn().told == {}
    assert mailbox.told == [("number 1", True), ("number 1", False)]
    memory = mailbox.maildir / "deliver" / "learned"
    assert memory.stat().st_uid == mailbox.maildir.stat().st_uid
    assert memory.stat().st_mode & 0o777 == 0o600


def test_not_before_its_time(mailbox: Mailbox) -> None:
    """The owner has [learn] after to think better of it, from the move on."""
    path = mailbox.message("cur")
    os.utime(path, (0, 0))
    mailbox.move(path, ".Spam/cur")
    assert mailbox.learn("[learn]\nafter = '3 d'\npause = '0 s'\n", days=2).told == {}
    assert mailbox.learn("[learn]\nafter = '3 d'\npause = '0 s'\n", days=4).told == {"spam": 1}


def test_most_of_a_run_and_the_rest_next_time(mailbox: Mailbox) -> None:
    for _ in range(5):
        mailbox.message(".Spam/cur")
    few = "[learn]\nmost = 2\npause = '0 s'\nafter = '0 s'\n"
    results = [mailbox.learn(few) for _ in range(4)]
    assert [(result.told, result.left) for result in results] == [
        ({"spam": 2}, 3),
        ({"spam": 2}, 1),
        ({"spam": 1}, 0),
        ({}, 0),
    ]
    assert sorted(mailbox.told) == [(f"number {number}", True) for number in range(1, 6)]


def test_what_failed_comes_again_and_the_rest_goes_on(mailbox: Mailbox) -> None:
    for _ in range(3):
        mailbox.message(".Spam/cur")
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise Deferred("spamd reported an error")

    mailbox.fails = fail_once
    result = mailbox.learn()
    assert (result.told, result.left, result.why) == ({"spam": 2}, 1, "spamd reported an error")
    assert mailbox.learn().told == {"spam": 1}
    assert len(set(mailbox.told)) == 3


def test_large_messages_are_passed_over(mailbox: Mailbox) -> None:
    """What spamd would not be asked about is no lesson, either: [spamd] max-size."""
    path = mailbox.message(".Spam/cur")
    with path.open("ab") as file:
        file.write(b"x" * 300_000)
    result = mailbox.learn()
    assert (result.told, result.large) == ({}, 1)


def test_where_rules_file_spam_nobody_has_moved_it(mailbox: Mailbox) -> None:
    mailbox.message(".Work/cur", ours=FLAGGED)
    mailbox.message("cur", ours=FLAGGED)
    rule = "[[rule]]\nsees = 'spam'\nfile = 'Work'\n"
    assert mailbox.learn(rule).told == {"ham": 1}
    assert mailbox.told == [("number 2", False)]


def test_a_spam_folder_that_is_the_inbox_says_nothing(mailbox: Mailbox) -> None:
    mailbox.message("cur", ours=FLAGGED)
    mailbox.message("cur")
    assert mailbox.learn("[spam]\nfolder = 'INBOX'\n").told == {}


def test_the_owners_own_spam_folder_counts_where_the_site_lets_it(mailbox: Mailbox) -> None:
    mailbox.message(".Work/cur")
    (mailbox.home / "mailfilter.toml").write_text("[spam]\nfolder = 'Work'\n")
    own(mailbox.top)
    assert mailbox.learn().told == {}
    mailbox.touch(mailbox.maildir / ".Work" / "cur" / "1.P1.you:2,S")  # it was looked at already
    assert mailbox.learn("[user]\nmay-set = ['spam.folder']\n", days=4).told == {"spam": 1}


def test_dry_run_counts_and_leaves_nothing(mailbox: Mailbox) -> None:
    mailbox.message(".Spam/cur")
    assert mailbox.learn(dry_run=True).told == {"spam": 1}
    assert mailbox.told == []
    assert not (mailbox.maildir / "deliver").exists()


@pytest.mark.parametrize(("pattern", "spared"), [("*/you", True), ("*/other", False)])
def test_exceptions(mailbox: Mailbox, pattern: str, spared: bool) -> None:
    mailbox.message(".Spam/cur")
    result = mailbox.learn(f"[learn]\npause = '0 s'\nafter = '0 s'\nexcept = ['{pattern}']\n")
    assert (result.spared, result.told) == ((True, {}) if spared else (False, {"spam": 1}))


def test_links_are_not_followed(mailbox: Mailbox) -> None:
    outside = mailbox.top / "outside"
    (outside / "cur").mkdir(parents=True)
    (outside / "cur" / "1.P1.x:2,S").write_text("Subject: theirs\n\nx\n")
    (mailbox.maildir / ".Spam" / "cur").rmdir()
    (mailbox.maildir / ".Spam" / "cur").symlink_to(outside / "cur")
    (mailbox.maildir / ".Junk" / "cur" / "2.P1.x:2,S").symlink_to(outside / "cur" / "1.P1.x:2,S")
    (mailbox.maildir / ".Linked").symlink_to(outside)
    assert mailbox.learn().told == {}
    (mailbox.maildir / "deliver" / "learned").unlink()
    (mailbox.maildir / "deliver" / "learned").symlink_to(outside / "planted")
    assert mailbox.learn().why
    assert not (outside / "planted").exists()


def test_two_at_once(mailbox: Mailbox) -> None:
    """The second leaves it alone."""
    mailbox.message(".Spam/cur")
    inner: list[work.Result] = []
    mailbox.fails = lambda: inner.append(mailbox.learn())
    assert mailbox.learn().told == {"spam": 1}
    assert "another learn" in inner[0].why


def test_a_memory_that_a_crash_cut_costs_nothing(mailbox: Mailbox) -> None:
    path = mailbox.message(".Spam/cur")
    mailbox.learn()
    memory = mailbox.maildir / "deliver" / "learned"
    digest = memory.read_text().split()[1]
    memory.write_text(f"spam {digest}\nupto 5\nup")
    assert mailbox.learn().told == {}
    mailbox.move(path, "cur")
    memory.write_text(memory.read_text() + "spam 12")
    assert mailbox.learn().told == {"ham": 1}
    assert f"ham {digest}" in memory.read_text().splitlines()


def test_a_clock_that_was_wrong_stops_nothing(mailbox: Mailbox) -> None:
    """It said next year; then all is looked at again, and nothing told twice."""
    mailbox.message(".Spam/cur")
    mailbox.learn(days=400)
    mailbox.message(".Spam/cur")
    assert mailbox.learn().told == {"spam": 1}
    assert len(set(mailbox.told)) == len(mailbox.told) == 2


def test_the_memory_stays_small(mailbox: Mailbox) -> None:
    memory = mailbox.maildir / "deliver" / "learned"
    memory.parent.mkdir()
    digests = [f"{number:064x}" for number in range(16_000)]
    memory.write_text("".join(f"spam {digest}\n" for digest in digests))
    mailbox.message(".Spam/cur")
    assert mailbox.learn().told == {"spam": 1}
    lines = memory.read_text().splitlines()
    assert 8_000 <= len(lines) <= 8_003
    assert f"spam {digests[-1]}" in lines
    assert mailbox.learn().told == {}


@pytest.mark.parametrize(
    ("template", "path", "address"),
    [
        ("", "/home/vpopmail/domains/example.org/anna/Maildir", "anna@example.org"),
        ("", "/home/vpopmail/domains/3/example.org/B/anna/Maildir", "anna@example.org"),
        ("/srv/{domain}/{user}/Maildir", "/srv/example.org/anna/Maildir", "anna@example.org"),
        ("/srv/{recipient}/Maildir", "/srv/anna@example.org/Maildir", "anna@example.org"),
        ("/srv/{domain}/{user}/{user}", "/srv/example.org/anna/else", ""),
        ("", "/srv/unknown/Maildir", ""),
    ],
)
def test_whose_mailbox_it_is(template: str, path: str, address: str) -> None:
    settings = site(f"[users]\nmaildir = '{template}'\n" if template else "")
    assert whose(path, settings, 4_000_000_000) == address


def test_each_users_bayes_data_needs_to_know_whom(mailbox: Mailbox) -> None:
    mailbox.message(".Spam/cur")
    config = configuration.parse(b"[spamd]\nuser = '{recipient}'\n[learn]\npause = '0 s'\n", "f")[0]
    assert config is not None
    top = open_directory(str(mailbox.top))
    result = work.learn(top, "you/Maildir", str(mailbox.maildir), config, mailbox.teach, time.time() + 2 * DAY)
    os.close(top)
    assert "whose mailbox" in result.why
    assert mailbox.told == []


# --- the real spamd -----------------------------------------------------------------------------------------------


def test_a_real_spamd_learns_and_forgets(mailbox: Mailbox, teaching: servers.Server) -> None:
    """By the counts of its own Bayes data: spam, then ham instead, and nothing twice."""
    config = site()
    config = configuration.parse(f"[spamd]\naddress = '{teaching.address}'\n".encode(), "f")[0] or config
    real = wiring.teacher(config)
    said: list[bool] = []
    mailbox.teach = lambda *lesson: bool(said.append(real(*lesson))) or said[-1]  # type: ignore[method-assign]
    before = learned(teaching) if (teaching.log.parent / "bayes_toks").exists() else (0, 0)
    path = mailbox.message(".Spam/cur", subject="cheap watches")
    mailbox.message("cur", ours=FLAGGED, subject="the minutes")
    result = mailbox.learn()
    assert (result.why, result.told, result.known, said) == ("", {"spam": 1, "ham": 1}, 0, [True, True])
    assert learned(teaching) == (before[0] + 1, before[1] + 1)
    mailbox.move(path, "cur")
    assert mailbox.learn().told == {"ham": 1}
    assert learned(teaching) == (before[0], before[1] + 2)
    (mailbox.maildir / "deliver" / "learned").unlink()
    result = mailbox.learn()
    assert (result.told, result.known) == ({"ham": 1}, 1)  # the flagged one; spamd knows it
    assert learned(teaching) == (before[0], before[1] + 2)


def command(top: Path, address: str, *more: str, after: str = "0 s") -> tuple[int, str]:
    """`deliver learn` on a tree."""
    config = top / "site.toml"
    config.write_text(f"[spamd]\naddress = '{address}'\n[learn]\npause = '0 s'\nafter = '{after}'\n")
    done = CliRunner().invoke(cli, ["learn", "--config", str(config), *more, str(top)])
    return done.exit_code, done.output


def test_the_command_sums_up(scratch: Path, teaching: servers.Server) -> None:
    for name in ("one", "two"):
        Mailbox(scratch, name).message(".Spam/cur", subject=f"an offer for {name}")
    code, output = command(scratch, teaching.address, "--json")
    assert code == 0, output
    *boxes, summary = map(json.loads, output.splitlines())
    assert [box["told"] for box in boxes] == [{"spam": 1}, {"spam": 1}]
    assert {"mailboxes": 2, "spam": 2, "ham": 0, "known": 0, "failed": 0}.items() <= summary.items()
    code, output = command(scratch, teaching.address)
    assert (code, "told: 0 spam, 0 ham" in output) == (0, True)


def test_a_spamd_that_is_down_ends_the_run_and_nothing_is_lost(scratch: Path, teaching: servers.Server) -> None:
    """Of twenty thousand mailboxes not each waits for its time-out."""
    for number in range(5):
        Mailbox(scratch, f"user{number}").message(".Spam/cur", subject=f"a bargain for {number}")
    with servers.Scripted(scratch) as peer:
        code, output = command(scratch, peer.address)
        assert len(peer.peers) == wiring.MOST_FAILURES
    assert (code, "the rest comes with the next run" in output) == (1, True)
    code, output = command(scratch, teaching.address)
    assert (code, "told: 5 spam" in output) == (0, True)


def test_a_spamd_that_takes_no_lessons_is_said_once(scratch: Path) -> None:
    """Its words are those of spamd 4.0 without --allow-tell (spamd(1p))."""
    for name in ("one", "two"):
        Mailbox(scratch, name).message(".Spam/cur")
    no = b"SPAMD/1.0 69 Service Unavailable: TELL commands are not enabled, set the --allow-tell switch.\r\n"
    with servers.Scripted(scratch, servers.read_all, servers.answer(no)) as peer:
        code, output = command(scratch, peer.address)
        assert len(peer.peers) == 1
    assert code == 1
    assert "start it with --allow-tell" in output
    assert "2 left" not in output


def test_a_real_spamd_without_allow_tell_says_so(scratch: Path, spamd_server: servers.Server) -> None:
    Mailbox(scratch).message(".Spam/cur")
    code, output = command(scratch, spamd_server.address)
    assert (code, "start it with --allow-tell" in output) == (1, True)


@pytest.mark.parametrize("said", [b"", b"SPAMD/1.1 0 EX_OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_nonsense_is_no_lesson_learned(scratch: Path, said: bytes) -> None:
    Mailbox(scratch).message(".Spam/cur")
    with servers.Scripted(scratch, servers.read_all, servers.answer(said)) as peer:
        code, output = command(scratch, peer.address)
    assert code == 1
    assert "told: 0 spam" in output
    memory = scratch / "you" / "Maildir" / "deliver" / "learned"
    with contextlib.suppress(FileNotFoundError):
        assert "spam" not in memory.read_text()


def test_without_spamd_there_is_nobody_to_tell(scratch: Path) -> None:
    config = scratch / "site.toml"
    config.write_text("[learn]\n")
    done = CliRunner().invoke(cli, ["learn", "--config", str(config), str(scratch)])
    assert (done.exit_code, "[spamd]" in done.output) == (1, True)


# --- quarantine release --learn ham --------------------------------------------------------------------------------


def release(top: Path, address: str, *ids: str) -> tuple[int, str]:
    (top / "site.toml").write_text(f"[quarantine]\ndirectory = '{top}/quarantine'\n[spamd]\naddress = '{address}'\n")
    arguments = ["--config", str(top / "site.toml"), "release", "--learn", "ham", *ids]
    done = CliRunner().invoke(quarantine_cli, arguments)
    return done.exit_code, done.output


def test_what_is_released_can_be_told_as_ham(scratch: Path, teaching: servers.Server) -> None:
    box = Mailbox(scratch)
    store = Files(str(scratch), "quarantine")
    text = b"From: a@example.net\nSubject: held by mistake\nMessage-ID: <held@example.net>\n\nThe minutes.\n"
    one, two = (put(store, held(box.maildir, sender=sender), text) for sender in ("a@b", "c@d"))
    own(scratch)
    before = learned(teaching) if (teaching.log.parent / "bayes_toks").exists() else (0, 0)
    code, output = release(scratch, teaching.address, one.id)
    assert (code, "learned as ham" in output) == (0, True)
    assert learned(teaching) == (before[0], before[1] + 1)
    code, output = release(scratch, teaching.address, two.id)
    assert (code, "changed nothing" in output) == (0, True)
    assert len(list((box.maildir / "new").iterdir())) == 2


def test_it_is_released_even_if_spamd_is_down(scratch: Path) -> None:
    box = Mailbox(scratch)
    one = put(Files(str(scratch), "quarantine"), held(box.maildir))
    own(scratch)
    code, output = release(scratch, f"unix:{scratch}/nobody", one.id)
    assert (code, "released to" in output, "not told to spamd" in output) == (1, True, True)
    assert len(list((box.maildir / "new").iterdir())) == 1
