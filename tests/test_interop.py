"""After our deliveries, a real Dovecot and a real Courier-IMAP show what was delivered, as it was delivered."""

import functools
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import forked
import imap
import main_job
import pytest
import servers
from imap import server, unpack_courier  # noqa: F401 - the fixtures `server` and `courier`

HAM = main_job.message("hello")
SPAM = b"X-Spam-Status: Yes, score=7.0 required=5.0 tests=A\n" + main_job.message("an offer")
ODD = {
    "ordinary": HAM,
    "empty": b"",
    "headers only": b"Subject: x\n\n",
    "no last newline": b"Subject: x\n\nend",
    "8-bit": b"Subject: \xe9\n\n\xff\xfe caf\xc3\xa9\n",
    "NUL-free controls": b"Subject: x\n\n\x01\x1b[31m\n",
    "CRLF throughout": HAM.replace(b"\n", b"\r\n"),
    "a From_ line in the body": b"Subject: x\n\nFrom a@example.net Sun Nov 22 12:00:00 2026\n>From b\n",
    "a line of 1 MB": b"Subject: x\n\n" + b"x" * 1_000_000 + b"\n",
    "dots": b"Subject: x\n\n.\n..\n",
}


@pytest.fixture(name="home")
def make_home(scratch: Path) -> main_job.Home:
    """A user whose spam is told by an upstream scanner."""
    settings = '[spam]\ntrust-header = "X-Spam-Status"\n'
    return main_job.Home(scratch, Path("/nonexistent"), f'[log]\nto = "{scratch}/log"\n{settings}')


def deliver(home: main_job.Home, content: bytes, *arguments: str, **more: str) -> int:
    """The exit code of a delivery."""
    return forked.deliver(home.environment(**more), home.path, *arguments, stdin=content).code


def as_shown(content: bytes) -> bytes:
    """A message as IMAP servers send it: lines end in CRLF (RFC 3501 section 4.3)."""
    return content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("name", ODD)
def test_a_message_is_shown_byte_for_byte(home: main_job.Home, server: imap.Server, name: str) -> None:  # noqa: F811
    """Content, size, flags and date."""
    assert deliver(home, ODD[name]) == 0
    (path,) = (home.maildir / "new").iterdir()
    stored, when = path.read_bytes(), path.stat().st_mtime
    with server(home.path) as session:
        (shown,) = session.messages()
    expected = ODD[name].replace(b"\r\n", b"\n")
    assert stored == b"Return-Path: <friend@example.net>\nDelivered-To: you@example.org\n" + expected
    assert shown.content == as_shown(stored)
    assert shown.size == len(shown.content)
    assert shown.flags == set()
    assert shown.internal.strip() == imap.internal_date(when)


def test_the_spam_folder_is_listed_and_subscribed(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """From the first spam on; not before."""
    assert deliver(home, HAM) == 0
    with server(home.path) as session:
        assert session.folders() == ["INBOX"]
    assert deliver(home, SPAM) == 0
    with server(home.path) as session:
        assert session.folders() == ["INBOX", "Spam"]
        assert "Spam" in session.folders("LSUB")
        (shown,) = session.messages("Spam")
        assert shown.content.endswith(as_shown(SPAM))
        assert shown.flags == set()
        assert len(session.messages()) == 1


def test_a_folder_whose_first_message_failed_is_subscribed_by_the_next(
    home: main_job.Home, server: imap.Server  # noqa: F811
) -> None:
    """The disk was full, say: the folder was made and the message put off. But only once: its owner may unsubscribe."""
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    large = SPAM + b"x" * 5000 + b"\n"
    assert forked.deliver(home.environment(), home.path, stdin=large, prepare=full).code == 75
    assert (home.maildir / ".Spam").is_dir()
    assert deliver(home, large) == 0
    with server(home.path) as session:
        assert "Spam" in session.folders("LSUB")
        session.unsubscribe("Spam")
    assert deliver(home, SPAM) == 0
    with server(home.path) as session:
        assert "Spam" not in session.folders("LSUB")
        assert len(session.messages("Spam")) == 2


def test_a_running_session_sees_the_new_folder(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """A client stays connected for days."""
    with server(home.path) as session:
        assert session.folders() == ["INBOX"]
        assert deliver(home, SPAM) == 0
        assert len(session.messages("Spam")) == 1
        assert "Spam" in session.folders("LSUB")


def test_spam_marked_as_read_is_seen(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """It goes straight to cur, with its flag."""
    home.config.write_text(home.config.read_text() + "mark-read = true\n")
    assert deliver(home, SPAM) == 0
    with server(home.path) as session:
        (shown,) = session.messages("Spam")
        assert shown.flags == {"\\Seen"}
        assert shown.content.endswith(as_shown(SPAM))


def test_all_flags_of_rules_are_shown(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """Seen, Flagged, Answered and Draft, in a folder below another."""
    rule = '[[rule]]\nfile = "A.B"\nflag = ["seen", "flagged", "answered", "draft"]\n'
    home.config.write_text(home.config.read_text() + rule)
    assert deliver(home, HAM) == 0
    with server(home.path) as session:
        assert "A.B" in session.folders()
        assert "A.B" in session.folders("LSUB")
        (shown,) = session.messages("A.B")
        assert shown.flags == {"\\Seen", "\\Flagged", "\\Answered", "\\Draft"}


FOLDERS = {
    "missing": None,
    "complete": ("cur", "new", "tmp"),
    "with its mark": ("cur", "new", "tmp", "maildirfolder"),
    "without cur": ("new", "tmp"),
    "without new": ("cur", "tmp"),
    "without tmp": ("cur", "new"),
    "empty": (),
}


@pytest.mark.parametrize("state", FOLDERS)
def test_every_state_of_the_folder_is_mended(home: main_job.Home, server: imap.Server, state: str) -> None:  # noqa: F811
    """Courier cannot open a folder without tmp, and shows garbage where cur is missing."""
    parts = FOLDERS[state]
    if parts is not None:
        for part in ("", *parts):
            path = home.maildir / ".Spam" / part
            path.touch() if part == "maildirfolder" else path.mkdir()
        main_job.own(home.path)
    assert deliver(home, SPAM) == 0
    with server(home.path) as session:
        (shown,) = session.messages("Spam")
        assert shown.content.endswith(as_shown(SPAM))
        assert ("Spam" in session.folders("LSUB")) is (not parts)  # what has no part is not a folder yet


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/nonexistent"), os.mkfifo])
def test_a_folder_that_cannot_be_used_leaves_the_inbox(
    home: main_job.Home, server: imap.Server, make: Callable[[Path], object]  # noqa: F811
) -> None:
    """What is in its place stays."""
    path = home.maildir / ".Spam"
    make(path)
    before = path.lstat()
    assert deliver(home, SPAM) == 0
    with server(home.path) as session:
        assert len(session.messages()) == 1
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


LISTS = {
    "dovecot": {
        "version 2": b"V\t2\n\nSent\nA\tB\n",
        "version 1": b"Sent\nA.B\n",
        "no last newline": b"V\t2\n\nSent\nA\tB",
        "empty": b"",
        "with ours": b"V\t2\n\nSpam\nSent\nA\tB\n",
        "CRLF": b"V\t2\n\nSent\r\nA\tB\r\n",
        "tab-escaped": b"V\t2\n\nx\x01ty\nSent\nA\tB\n",
    },
    "courier": {
        "ordinary": b"INBOX\nINBOX.Sent\nINBOX.A.B\n",
        "no last newline": b"INBOX.Sent\nINBOX.A.B",
        "empty": b"",
        "with ours": b"INBOX.Spam\nINBOX.Sent\nINBOX.A.B\n",
        "twice": b"INBOX.Sent\nINBOX.Sent\nINBOX.A.B\n",
        "not INBOX's": b"Sent\n.Sent\nINBOX.Sent\nINBOX.A.B\n",
    },
}
FILES = {"dovecot": "subscriptions", "courier": "courierimapsubscribed"}


@pytest.mark.parametrize(("who", "state"), [(who, state) for who, states in LISTS.items() for state in states])
def test_every_state_of_the_list_keeps_what_it_had(
    home: main_job.Home, courier: imap.Server, who: str, state: str
) -> None:
    """What the server showed before it still shows, and the spam folder beside it."""
    open_session = imap.dovecot if who == "dovecot" else courier
    for folder in ("Sent", "A.B"):
        for part in ("", "cur", "new", "tmp"):
            (home.maildir / f".{folder}" / part).mkdir()
    file = home.maildir / FILES[who]
    file.write_bytes(LISTS[who][state])
    main_job.own(home.path)
    with open_session(home.path) as session:
        before = set(session.folders("LSUB"))
    assert deliver(home, SPAM) == 0
    with open_session(home.path) as session:
        after = set(session.folders("LSUB"))
    complete = {"Sent", "A.B"} if "no last newline" in state else set()  # Dovecot drops a last line without one
    assert after - {"INBOX"} == (before | complete | {"Spam"}) - {"INBOX"}  # Courier shows it as the parent of others
    assert file.read_bytes().startswith(LISTS[who][state])


def test_subscribing_at_the_same_time_loses_nothing(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """The server adds twenty folders while deliveries make and add eight."""
    theirs = [f"T{number}" for number in range(20)]
    ours = [f"O{number}" for number in range(8)]
    for folder in theirs:
        for part in ("", "cur", "new", "tmp"):
            (home.maildir / f".{folder}" / part).mkdir()
    (home.maildir / FILES["dovecot"]).write_bytes(b"V\t2\n\n")
    (home.maildir / FILES["courier"]).write_bytes(b"")
    rules = "".join(f'[[rule]]\nfile = "{name}"\n[rule.when]\nsubject = "{name}"\n' for name in ours)
    home.config.write_text(home.config.read_text() + rules)
    main_job.own(home.path)
    with server(home.path) as session:
        failures: list[BaseException] = []

        def subscribe() -> None:
            try:
                for folder in theirs:
                    session.subscribe(folder)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=subscribe)
        thread.start()
        codes = [deliver(home, main_job.message(name)) for name in ours]
        thread.join()
        assert not failures
        assert codes == [0] * len(ours)
        assert set(theirs + ours) <= set(session.folders("LSUB"))


# --- quota ---


def fill(home: main_job.Home, names: dict[str, str], size: int = 1000) -> None:
    """Messages of that many bytes: a directory for each name."""
    for name, directory in names.items():
        path = home.maildir / directory
        path.mkdir(parents=True, exist_ok=True)
        for part in ("cur", "new", "tmp"):
            (path.parent / part).mkdir(exist_ok=True)
        (path / name).write_bytes(b"Subject: x\n\n" + b"x" * (size - 13) + b"\n")


def test_the_servers_quota_agrees_after_our_deliveries(home: main_job.Home, server: imap.Server) -> None:  # noqa: F811
    """From an empty mailbox on: both read the file that we have written."""
    (home.maildir / "maildirsize").write_bytes(b"10000000S,1000C\n")
    main_job.own(home.path)
    for number in range(5):
        assert deliver(home, main_job.message(f"n{number}", b"x" * 2000 * number + b"\n")) == 0
    assert deliver(home, SPAM) == 0
    stored = [one for folder in ("INBOX", "Spam") for one in home.messages(folder)]
    assert len(stored) == 6
    with server(home.path) as session:
        session.messages()
        quota = session.quota()
    used, limit = quota["STORAGE"]
    # RFC 2087 counts units of 1024 octets, and lets the server round as it likes.
    assert abs(used - sum(map(len, stored)) / 1024) < 1
    assert limit in (10_000_000 // 1024, 10_000_000 // 1024 + 1)
    assert quota["MESSAGE"] == (6, 1000)


def test_trash_and_deleted_mail_count_for_dovecot_only(home: main_job.Home, courier: imap.Server) -> None:
    """After our recount Courier agrees, and so does Dovecot until its own recount, which counts them."""
    fill(home, {"1.a.h,S=1000": "new", "2.a.h,S=1000:2,S": "cur", "3.a.h,S=1000:2,ST": "cur"})
    fill(home, {"4.a.h,S=1000:2,S": ".Trash/cur", "5.a.h,S=1000:2,S": ".Sent/cur"})
    (home.maildir / "maildirsize").write_bytes(b"10000000S,1000C\n-1 -1\n")  # nobody believes this one
    main_job.own(home.path)
    assert deliver(home, HAM) == 0
    for open_session in (courier, imap.dovecot):
        with open_session(home.path) as session:
            assert session.quota()["MESSAGE"][0] == 4  # 1, 2, 5 and ours
    (home.maildir / "maildirsize").write_bytes(b"10000000S,1000C\n-1 -1\n")
    with imap.dovecot(home.path) as session:
        assert session.quota()["MESSAGE"][0] == 6


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.faults)])
def test_a_recount_of_many_messages_takes_seconds(home: main_job.Home, count: int) -> None:
    """By their names alone; within the ten seconds after which nothing is counted and the message is delivered."""
    for number in range(count):
        os.close(os.open(home.maildir / "cur" / f"{number}.a.h,S=7:2,S", os.O_CREAT | os.O_WRONLY, 0o600))
    (home.maildir / "maildirsize").write_bytes(b"%dS\n-1 -1\n" % (count * 7 + 100_000))
    main_job.own(home.path)
    ended = forked.deliver(home.environment(), home.path, stdin=HAM)
    assert ended.code == 0
    assert ended.seconds < 10
    assert ended.grown < 64 * 1024 * 1024
    (delivered,) = (home.maildir / "new").iterdir()
    rows = [tuple(map(int, line.split())) for line in (home.maildir / "maildirsize").read_text().splitlines()[1:]]
    assert [sum(column) for column in zip(*rows, strict=True)] == [count * 7 + delivered.stat().st_size, count + 1]


def test_deliveries_at_once_at_the_limit(home: main_job.Home) -> None:
    """Whoever is refused hears 5.2.2; what is stored is what the file says; nothing is lost or half there."""
    (home.maildir / "maildirsize").write_bytes(b"10C\n           0            0\n")
    main_job.own(home.path)
    answers: list[forked.Ended] = []

    def start(number: int) -> None:
        """Each starts the next one, then waits for its own end."""
        if number:
            answers.append(
                forked.deliver(home.environment(), home.path, stdin=HAM, meanwhile=lambda _pid: start(number - 1))
            )

    start(20)
    stored = [one for one in home.messages() if not main_job.is_warning(one)]
    codes = sorted(answer.code for answer in answers)
    assert codes == [0] * len(stored) + [100] * (20 - len(stored))
    assert len(stored) >= 9  # a warning may have taken a place
    refused = {answer.stdout for answer in answers if answer.code == 100}
    assert refused == {b"5.2.2 Mailbox is full (#5.2.2)\n"}
    rows = [tuple(map(int, line.split())) for line in (home.maildir / "maildirsize").read_text().splitlines()[1:]]
    everything = home.messages()
    assert [sum(column) for column in zip(*rows, strict=True)] == [sum(map(len, everything)), len(everything)]
    assert os.listdir(home.maildir / "tmp") == []


def test_dovecot_itself_finds_no_fault_in_sizes(home: main_job.Home) -> None:
    """A wrong ,S= makes it drop the client at every FETCH, for ever."""
    for content in ODD.values():
        assert deliver(home, content) == 0
    servers.needs("/usr/lib/dovecot/imap")
    with imap.dovecot(home.path) as session:
        assert len(session.messages()) == len(ODD)
