"""The Maildir++ quota: what deliverquota of Courier does with every state of maildirsize, and where we differ.

The rules: https://www.courier-mta.org/imap/README.maildirquota.html. Each vector is played to the real deliverquota
too.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import servers

from deliver import quota
from deliver.maildir import Maildir
from deliver.units import Limit, parse_limit

ROOT = Path(__file__).resolve().parent.parent
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="modes do not stop root")
MESSAGE = b"Subject: quota\n\n" + b"x" * 97 + b"\n"
ADDED = b"         114            1\n"  # 12 columns each: maildirquota.c, and what all four programs can read
USED = (1342, 4)
LIMIT = b"10000000S,1000C\n"
TEXT = "From: postmaster@example.com\nSubject: Your mailbox is almost full\n\nPlease delete something.\n"


def message_in(directory: Path, name: str) -> None:
    """One more message."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(MESSAGE)


@pytest.fixture(name="path")
def make_maildir(tmp_path: Path) -> Path:
    """1342 bytes in 4 messages, and everything that does not count: deleted ones, Trash, dot files, tmp, other Maildirs."""
    path = tmp_path / "Maildir"
    for part in ("tmp", "new", "cur", ".Spam/tmp", ".Spam/cur"):
        (path / part).mkdir(parents=True)
    (path / ".Spam" / "maildirfolder").write_bytes(b"")
    message_in(path / "new", "1.a.h,S=114")
    message_in(path / "cur", "2.a.h:2,S")
    message_in(path / "cur", "3.a.h:2,ST")
    message_in(path / "cur", ".hidden")
    message_in(path / "tmp", "4.a.h")
    message_in(path / ".Spam" / "new", "5.a.h,S=1000")
    message_in(path / ".Trash" / "new", "6.a.h")
    message_in(path / ".Trash.old" / "new", "7.a.h")
    message_in(path / "Old" / "new", "8.a.h")  # a folder's name begins with a dot
    return path


class Result(NamedTuple):
    """What a delivery did: refused or not, and the maildirsize it left (None: there is none)."""

    refused: bool
    file: bytes | None


def deliver(path: Path, folder: str = "INBOX", default: Limit | None = None) -> Result:
    """Deliver MESSAGE as the program does."""
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, default)
        prepared = maildir.prepare(folder, [MESSAGE])
        counted = quota.counts(folder)
        refused = bool(usage and counted and usage.over(prepared.size))
        if refused:
            prepared.abort()
        else:
            prepared.commit()
            if usage and counted:
                assert quota.record(maildir.fd, usage, prepared.size, 1) == ""
    return Result(refused, content(path))


def deliver_by_courier(path: Path, *arguments: str) -> Result:
    """Deliver MESSAGE with Courier's own program."""
    message = path.parent / "message"
    message.write_bytes(MESSAGE)
    with message.open("rb") as stdin:
        command = [servers.needs("deliverquota.courier"), *arguments]
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=False, timeout=30)
    assert done.returncode in (0, 77), done
    return Result(done.returncode == 77, content(path))


def content(path: Path) -> bytes | None:
    """The maildirsize as it is."""
    file = path / "maildirsize"
    return file.read_bytes() if file.is_file() else None


def total(data: bytes | None) -> tuple[int, int]:
    """What maildirsize says is used: the sum of all lines but the first."""
    assert data is not None
    pairs = [tuple(map(int, line.split())) for line in data.splitlines()[1:]]
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def on_disk(path: Path) -> tuple[int, int]:
    """What is used, counted independently: only for Maildirs without odd files."""
    sizes = [file.stat().st_size for part in ("new", "cur") for file in (path / part).iterdir()]
    return sum(sizes), len(sizes)


APPEND, RECOUNT, REFUSE = "append", "recount", "refuse"


class Vector(NamedTuple):
    """A maildirsize, what deliverquota does with it, and what we do where that differs on purpose."""

    name: str
    before: bytes
    courier: str
    ours: str = ""
    age: int = 0


VECTORS = [
    Vector("Q2 nothing recorded", LIMIT, APPEND),
    Vector("Q3 both limits", LIMIT + b"5000 5\n", APPEND),
    Vector("Q4 messages only", b"1000C\n5000 5\n", APPEND),
    Vector("Q5 zero", b"0S\n5000 5\n", APPEND),
    Vector("Q5 NOQUOTA", b"NOQUOTA\n5000 5\n", APPEND),
    Vector("Q5 no letter", b"10000000\n5000 5\n", APPEND),
    Vector("Q5 unknown letter", b"10000000B\n5000 5\n", APPEND),
    Vector("Q6 CRLF", b"10000000S,1000C\r\n5000 5\r\n", APPEND),
    Vector("Q7 space", b"10000000S, 1000C\n5000 5\n", APPEND),
    Vector("Q8 negative sum", LIMIT + b"10 1\n-20 -5\n", RECOUNT),
    Vector("Q9 fresh and full", b"2000S,1000C\n5000 5\n", REFUSE),
    Vector("Q10 full for 16 minutes", b"2000S,1000C\n5000 5\n", RECOUNT, age=960),
    Vector("Q10 full for 14 minutes", b"2000S,1000C\n5000 5\n", REFUSE, age=840),
    Vector("Q11 full in two lines", b"2000S,1000C\n4000 4\n1000 1\n", RECOUNT),
    Vector("Q12 5120 bytes", LIMIT + ADDED * 196 + b"1000  1\n", RECOUNT),
    Vector("Q13 5112 bytes", LIMIT + ADDED * 196, APPEND),
    Vector("Q14 no last newline", LIMIT + b"5000 5\n77", APPEND, RECOUNT),
    Vector("Q14 no newline at all", b"10000000S", APPEND, RECOUNT),
    Vector("Q15 NUL", LIMIT + b"5000 5\n" + bytes(20) + b"\n", APPEND, RECOUNT),
    Vector("Q16 junk", LIMIT + b"junk\n\n77\n5000 5\n", APPEND),
    Vector("Q16 junk behind", LIMIT + b"5000 5 junk\n", APPEND),
    Vector("Q17 overflow", LIMIT + b"99999999999999999999 5\n", REFUSE, RECOUNT),
    Vector("Q18 exactly full", b"5000S,5C\n5000 5\n", REFUSE),
    Vector("Q18 exactly full with it", b"5114S,6C\n5000 5\n", APPEND),
    Vector("Q18 one byte short", b"5113S,6C\n5000 5\n", REFUSE),
    Vector("Q18 one message short", b"5114S,5C\n5000 5\n", REFUSE),
    Vector("Q19 unknown second limit", b"10000000S,5X\n5000 5\n", APPEND),
    Vector("full by a real count", b"1400S\n1342 4\n1 0\n", REFUSE, age=960),
    Vector("over 4 GB", b"9000000000S\n8999999886 1\n", APPEND),
    Vector("the last limit counts", b"1S,9000S\n5000 5\n", APPEND),
]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector.name for vector in VECTORS])
@pytest.mark.parametrize("who", ["courier", "ours"])
def test_every_state_of_maildirsize(path: Path, vector: Vector, who: str) -> None:
    file = path / "maildirsize"
    file.write_bytes(vector.before)
    then = time.time() - vector.age
    os.utime(file, (then, then))

    result = deliver_by_courier(path, str(path)) if who == "courier" else deliver(path)

    expected = vector.courier if who == "courier" else vector.ours or vector.courier
    assert result.refused is (expected == REFUSE)
    assert result.file is not None
    if vector.name == "full by a real count":
        # Courier stores its recount at once; ours does when the refusal is recorded (see the test of that).
        assert total(result.file) == (USED if who == "courier" else (1343, 4))
    elif expected == REFUSE:
        assert result.file == vector.before
    elif expected == APPEND:
        assert result.file == vector.before + ADDED
    else:
        assert result.file.splitlines()[0] == vector.before.splitlines()[0]
        assert total(result.file) == (USED[0] + len(MESSAGE), USED[1] + 1)
        assert len(result.file) < 100


@pytest.mark.parametrize("who", ["courier", "ours"])
def test_q1_without_the_file_there_is_no_quota(path: Path, who: str) -> None:
    result = deliver_by_courier(path, str(path)) if who == "courier" else deliver(path)
    assert result == Result(refused=False, file=None)


def test_q5_an_empty_file_is_left_alone(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"")
    assert deliver(path) == Result(refused=False, file=b"")  # Courier makes its line the limit


@pytest.mark.parametrize(
    "name", ["-S=1:2,S", "x:2,S,S=5", "x,S=7,S=9", "x,S=abc", "x,S=", "x,S=12x:2,FS", "x:2,aT", "x:1,T", "x:2,S:2,T", "x:1,S:2,T"]
)
def test_messages_are_counted_as_courier_counts_them(path: Path, name: str) -> None:
    message_in(path / "cur", name)
    recount = LIMIT + b"-1 -1\n"

    (path / "maildirsize").write_bytes(recount)
    courier = total(deliver_by_courier(path, str(path)).file)
    for file in (path / "new").iterdir():
        if file.name != "1.a.h,S=114":
            file.unlink()
    (path / "maildirsize").write_bytes(recount)
    assert total(deliver(path).file) == courier


def plant_link(file: Path) -> None:
    """A symbolic link to a good file."""
    file.with_name("good").write_bytes(b"1S\n9 9\n")
    file.symlink_to("good")


def plant_directory(file: Path) -> None:
    """A directory."""
    file.mkdir()


def plant_fifo(file: Path) -> None:
    """A FIFO, which hangs deliverquota for ever."""
    os.mkfifo(file)


def plant_hard_link(file: Path) -> None:
    """Another name of a file that may be somebody else's."""
    file.write_bytes(b"1S\n9 9\n")
    file.with_name("other").hardlink_to(file)


def plant_strangers(file: Path) -> None:
    """Another user's file."""
    if os.geteuid():
        pytest.skip("only root can give a file away")
    file.write_bytes(b"1S\n9 9\n")
    os.chown(file, 65534, 65534)


PLANTED = [plant_link, plant_directory, plant_fifo, plant_hard_link, plant_strangers]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("default", [None, Limit(1, 1)])
def test_q20_and_q21_what_is_not_our_plain_file_is_ignored(
    path: Path, plant: Callable[[Path], None], default: Limit | None
) -> None:
    file = path / "maildirsize"
    plant(file)
    before = file.lstat()
    assert deliver(path, default=default).refused is False
    after = file.lstat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


@NOT_ROOT
def test_q20_an_unreadable_file_is_ignored(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"1S\n9 9\n")
    (path / "maildirsize").chmod(0)
    with Maildir(str(path)) as maildir:
        assert quota.assess(maildir.fd, None) is None


def test_a_sparse_giant_is_read_no_further_than_needed(path: Path) -> None:
    with (path / "maildirsize").open("wb") as file:
        file.write(LIMIT)
        file.truncate(10**10)
    assert total(deliver(path).file) == (1456, 5)


@pytest.mark.parametrize("who", ["courier", "ours"])
def test_q22_a_folder_counts_in_the_roots_file(path: Path, who: str) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    result = deliver_by_courier(path, str(path / ".Spam")) if who == "courier" else deliver(path, "Spam")
    assert result.file == LIMIT + b"5000 5\n" + ADDED


def test_q23_a_folder_without_its_mark_gets_one_and_counts(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    (path / ".Spam" / "maildirfolder").unlink()
    assert deliver(path, "Spam").file == LIMIT + b"5000 5\n" + ADDED
    # ... and Courier finds the quota from there on
    assert deliver_by_courier(path, str(path / ".Spam")).file == LIMIT + b"5000 5\n" + ADDED * 2


@pytest.mark.parametrize("who", ["courier", "ours"])
def test_q24_the_trash_does_not_count(path: Path, who: str) -> None:
    before = b"2000S\n5000 5\n"
    (path / "maildirsize").write_bytes(before)
    (path / ".Trash" / "tmp").mkdir()
    (path / ".Trash" / "cur").mkdir()
    result = deliver_by_courier(path, str(path / ".Trash")) if who == "courier" else deliver(path, "Trash")
    assert result == Result(refused=False, file=before)


def test_only_the_trash_itself_does_not_count() -> None:
    assert [quota.counts(name) for name in ("Trash", "Trash.old", "trash", "INBOX")] == [False, True, True, True]


def test_q25_a_default_limit_makes_the_file(path: Path) -> None:
    result = deliver(path, default=Limit(9000, 0))
    assert result.file is not None
    assert result.file.splitlines()[0] == b"9000S"
    assert total(result.file) == (1456, 5)
    assert (path / "maildirsize").stat().st_mode & 0o777 == 0o600
    # Courier goes on with it
    assert deliver_by_courier(path, str(path)).file == result.file + ADDED


def test_q25_a_default_limit_holds_before_there_is_a_file(path: Path) -> None:
    assert deliver(path, default=Limit(1455, 0)) == Result(refused=True, file=None)
    assert deliver(path, default=Limit(0, 4)) == Result(refused=True, file=None)
    assert deliver(path, default=Limit(1456, 5)).refused is False


def test_q26_the_files_limit_goes_before_the_default(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    assert deliver(path, default=Limit(1, 1)).file == LIMIT + b"5000 5\n" + ADDED


def test_q27_no_default_limit_makes_no_file(path: Path) -> None:
    assert deliver(path, default=Limit()).file is None


def test_an_empty_file_takes_the_default_limit(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"")
    result = deliver(path, default=Limit(9000, 70))
    assert result.file is not None
    assert result.file.startswith(b"9000S,70C\n")
    assert total(result.file) == (1456, 5)


def test_a_file_time_in_the_future_is_no_proof_of_a_recount(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"2000S\n5000 5\n")
    then = time.time() + 3600
    os.utime(path / "maildirsize", (then, then))
    assert total(deliver(path).file) == (1456, 5)


def test_a_refusal_recorded_keeps_the_recount(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"1400S\n1342 4\n1 0\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        assert usage.over(114)
        assert quota.record(maildir.fd, usage, 0, 0) == ""
    assert content(path) == b"1400S\n        1342            4\n"
    # the same bytes as Courier's own recount
    (path / "maildirsize").write_bytes(b"1400S\n1342 4\n1 0\n")
    assert deliver_by_courier(path, str(path)).file == b"1400S\n        1342            4\n"


def test_assessing_changes_nothing(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, Limit(5))
        assert usage
        assert (usage.limit, usage.size, usage.count) == (Limit(10000000, 1000), *USED)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_the_mode_of_the_file_is_kept(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    (path / "maildirsize").chmod(0o640)
    deliver(path)
    assert (path / "maildirsize").stat().st_mode & 0o777 == 0o640


def test_nothing_is_left_in_tmp(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    deliver(path)
    assert os.listdir(path / "tmp") == ["4.a.h"]


def test_a_limit_that_cannot_be_checked_in_time_does_not_hold(path: Path) -> None:
    before = b"100S\n5000 5\n1 1\n"
    (path / "maildirsize").write_bytes(before)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None, deadline=-1)
        assert usage
        assert not usage.over(114)
        assert usage.percent == 0
        assert quota.record(maildir.fd, usage, 114, 1) == ""
    assert content(path) == before + ADDED


def test_a_count_that_takes_too_long_leaves_the_file(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None, deadline=-1)
        assert usage
        assert not usage.over(10**9)
        assert "could not be counted" in quota.record(maildir.fd, usage, 114, 1)
    assert content(path) == LIMIT + b"-1 -1\n"


def test_no_descriptor_stays_open(path: Path) -> None:
    """A service that leaked one a delivery could not open a file any more after a thousand."""
    before = os.listdir("/proc/self/fd")
    for content in (LIMIT + b"5000 5\n", LIMIT + b"-1 -1\n", b"200S\n5000 5\n", b""):
        (path / "maildirsize").write_bytes(content)
        deliver(path, default=Limit(10**6))
        warn(path, 1)
    (path / "quotawarn").unlink()
    (path / "quotawarn").mkdir()
    warn(path, 1)
    with Maildir(str(path)) as maildir:
        assert quota.recount(maildir.fd)
        (path / "tmp").rename(path / "away")
        with pytest.raises(FileNotFoundError):
            quota.recount(maildir.fd)
        (path / "maildirsize").unlink()
        os.mkfifo(path / "maildirsize")
        with pytest.raises(PermissionError):
            quota.recount(maildir.fd)
        assert quota.assess(maildir.fd, None) is None
    assert os.listdir("/proc/self/fd") == before


def test_recording_never_raises(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        (path / "tmp").rename(path / "away")
        assert "No such file" in quota.record(maildir.fd, usage, 114, 1)


@pytest.mark.parametrize(
    "before",
    [
        b"5000 5\n77",
        b"5000 5",
        b"5000 5\n\0\n",
        b"9223372036854775808 5\n",
        b"9" * 4400 + b" 5\n",
        b"1 " + b"9" * 4400 + b"\n",
    ],
)
def test_what_cannot_be_trusted_is_counted_before_the_decision(path: Path, before: bytes) -> None:
    (path / "maildirsize").write_bytes(LIMIT + before)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
    assert usage
    assert (usage.size, usage.count) == USED


def test_symlinked_folders_are_not_counted(path: Path) -> None:
    message_in(path.parent / "outside" / "new", "1.a.h")
    (path / ".Link").symlink_to("../outside")
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    assert total(deliver(path).file) == (1456, 5)


def test_a_quota_taken_away_meanwhile_stays_away(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        (path / "maildirsize").unlink()
        quota.record(maildir.fd, usage, 114, 1)
    assert content(path) is None


def test_a_file_rewritten_meanwhile_is_counted_anew(path: Path) -> None:
    """Whether our message is in the other program's count cannot be known."""
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        (path / "maildirsize").rename(path / "old")
        (path / "maildirsize").write_bytes(LIMIT + b"7000 7\n")
        quota.record(maildir.fd, usage, 114, 1)
    assert total(content(path)) == USED


def test_a_file_replaced_by_an_equal_one_is_counted_anew(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        (path / "maildirsize").rename(path / "old")
        (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
        quota.record(maildir.fd, usage, 114, 1)
    assert total(content(path)) == USED


def test_a_file_grown_to_5120_bytes_meanwhile_is_counted_anew(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"00000000" + LIMIT + ADDED * 195)  # 5094 bytes, and each line has 26
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        deliver_by_courier(path, str(path))
        quota.record(maildir.fd, usage, 114, 1)
    assert total(content(path)) == (USED[0] + len(MESSAGE), USED[1] + 1)


def test_mail_that_comes_during_a_recount_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced between the count and the rename: then another program delivers."""
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    real = os.fsync
    rounds = iter(["8.a.h", "9.a.h"])

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if name := next(rounds, ""):
            message_in(path / ".Spam" / "cur", name)

    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        monkeypatch.setattr(os, "fsync", fsync)
        quota.record(maildir.fd, usage, 0, 0)
    assert total(content(path)) == (USED[0] + 2 * len(MESSAGE), USED[1] + 2)


def test_a_maildir_that_never_holds_still_is_counted_five_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    real = os.fsync
    rounds = []

    def fsync(descriptor: int) -> None:
        real(descriptor)
        rounds.append(descriptor)
        message_in(path / "cur", f"{len(rounds)}.b.h")

    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        monkeypatch.setattr(os, "fsync", fsync)
        assert quota.record(maildir.fd, usage, 0, 0) == ""
    assert len(rounds) == 5
    assert total(content(path)) == (USED[0] + 4 * len(MESSAGE), USED[1] + 4)


def moved_while_counting(path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let a reader move a message from cur to new, so that it is seen in both, after each reading of the inbox's cur."""
    real = os.listdir
    message_in(path / "cur", "0.m.h")
    readings: list[int] = []

    def listdir(directory: int) -> list[str]:
        found = real(directory)
        if any(name.endswith(".m.h") for name in found) and len(readings) < times:
            readings.append(directory)
            (path / "cur" / f"{len(readings) - 1}.m.h").rename(path / "new" / f"{len(readings) - 1}.m.h")
            message_in(path / "cur", f"{len(readings)}.m.h")
        return found

    monkeypatch.setattr(os, "listdir", listdir)


def test_a_message_moved_during_a_count_is_counted_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "maildirsize").write_bytes(LIMIT + b"-1 -1\n")
    moved_while_counting(path, monkeypatch, 1)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
    assert usage
    assert usage.count == USED[1] + 2


def test_a_maildir_that_never_holds_still_is_not_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "maildirsize").write_bytes(b"1S\n-1 -1\n")
    moved_while_counting(path, monkeypatch, 1000)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        assert not usage.over(114)


def test_a_file_rewritten_in_place_is_counted_anew(path: Path) -> None:
    """The inode's number is the same, as after two renames."""
    (path / "maildirsize").write_bytes(LIMIT + b"5000 5\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        (path / "maildirsize").write_bytes(LIMIT + b"7000 7\n")
        quota.record(maildir.fd, usage, 114, 1)
    assert total(content(path)) == USED


# Forks 50 deliveries that all start when the parent closes the pipe; exits with the number of refusals.
HERD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from deliver import quota
from deliver.maildir import Maildir
wait, go = os.pipe()
children = []
for number in range(50):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)
        with Maildir(sys.argv[2]) as maildir:
            usage = quota.assess(maildir.fd, None)
            prepared = maildir.prepare("INBOX", [b"m" * (100 + number)])
            if usage.over(prepared.size):
                prepared.abort()
                quota.record(maildir.fd, usage, 0, 0)
                os._exit(1)
            prepared.commit()
            os._exit(2 if quota.record(maildir.fd, usage, prepared.size, 1) else 0)
    children.append(child)
os.close(go)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes.count(0), codes.count(1))
"""


@pytest.mark.parametrize(
    ("limit", "stored"),
    [
        (b"10000000S,1000C", 1),  # no recount at all
        (b"10000000S,1000C", 190),  # 5120 bytes are reached after a few of them
        (b"10000000S,30C", 20),  # the limit is; without locks some pass it, as Maildir++ allows
        (b"10000000S,30C", 30),  # nothing fits
    ],
)
def test_fifty_deliveries_at_once_are_all_counted(tmp_path: Path, limit: bytes, stored: int) -> None:
    path = tmp_path / "Maildir"
    for part in ("tmp", "new", "cur"):
        (path / part).mkdir(parents=True)
    for number in range(stored):
        message_in(path / "cur", f"{number}.a.h:2,S")
    (path / "maildirsize").write_bytes(limit + b"\n" + ADDED * stored)

    command = [sys.executable, "-I", "-c", HERD, str(ROOT), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    kept, refused = map(int, done.stdout.split())

    assert kept + refused == 50
    assert kept == len(os.listdir(path / "new"))
    assert (kept > 0) is (stored < 30 or limit == b"10000000S,1000C")
    assert total(content(path)) == on_disk(path)
    assert os.listdir(path / "tmp") == []


def test_recording_waits_for_its_turn(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT)
    other = os.open(path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        ours = threading.Thread(target=quota.record, args=(maildir.fd, usage, 114, 1))
        ours.start()
        ours.join(0.1)
        assert content(path) == LIMIT
        os.close(other)
        ours.join(10)
    assert content(path) == LIMIT + ADDED


def test_recording_does_not_wait_for_ever(path: Path) -> None:
    (path / "maildirsize").write_bytes(LIMIT)
    other = os.open(path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None, deadline=0.05)
        assert usage
        assert quota.record(maildir.fd, usage, 114, 1) == ""
    os.close(other)
    assert content(path) == LIMIT + ADDED


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("100 MB, 10000 messages", Limit(100_000_000, 10000)),
        ("1 MiB", Limit(1048576, 0)),
        ("1 message", Limit(0, 1)),
        ("10 messages, 1.5 KiB", Limit(1536, 10)),
        ("100000000S,10000C", Limit(100_000_000, 10000)),
        ("10000C", Limit(0, 10000)),
        ("104857600", Limit(104857600, 0)),
        ("", Limit()),
        ("NOQUOTA", Limit()),
        (" NOQUOTA\n", Limit()),
    ],
)
def test_limits_are_read_in_the_sites_and_in_maildirs_form(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["100 M", "many", "-1S", "100 MB 5 messages", "5X", ",", "100MB,", "٣S", "100 MB, 10000", "1C,2 messages"])
def test_a_wrong_limit_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match='expected a limit such as "100 MB, 10000 messages"'):
        parse_limit(text)


def warn(path: Path, percent: int, now: Callable[[], float] = time.time) -> bool:
    """Warn on the ground of what maildirsize says."""
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        return quota.warn(maildir, usage, percent, TEXT, now)


def messages(path: Path) -> list[bytes]:
    """The new messages that were not there before."""
    return [file.read_bytes() for file in (path / "new").iterdir() if file.name != "1.a.h,S=114"]


def test_a_warning_is_a_message_with_date_and_id_and_counts(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"10000S,10C\n8999 9\n")
    assert warn(path, 90)

    [message] = messages(path)
    date, ident, *rest = message.decode().splitlines(keepends=True)
    assert date.startswith("Date: ")
    assert date.endswith(" +0000\n")
    assert ident.startswith("Message-Id: <")
    assert ".overquota@" in ident
    assert "".join(rest) == TEXT
    assert content(path) == b"10000S,10C\n8999 9\n%12d %12d\n" % (len(message), 1)


@pytest.mark.parametrize(
    ("limit", "percent", "expected"),
    [
        (b"10000S", 50, True),
        (b"10000S", 51, False),
        (b"10000S,8C", 62, True),  # whichever is more
        (b"10000S,8C", 63, False),
        (b"1S", 100, True),
        (b"0S", 1, False),
        (b"0S", 0, False),
    ],
)
def test_a_warning_comes_from_its_percentage_on(path: Path, limit: bytes, percent: int, expected: bool) -> None:
    (path / "maildirsize").write_bytes(limit + b"\n5000 5\n")
    assert warn(path, percent) is expected
    assert len(messages(path)) == expected


def test_courier_warns_at_the_same_mark(path: Path) -> None:
    """The message that crosses the mark does not warn, the next one does; the stamp is shared."""
    text = path.parent / "warning"
    text.write_text(TEXT)
    (path / "maildirsize").write_bytes(b"10000S\n8900 5\n")
    options = ("-w", "90", "-W", str(text), str(path))

    deliver_by_courier(path, *options)
    assert not (path / "quotawarn").exists()
    assert content(path) == b"10000S\n8900 5\n" + ADDED
    assert warn(path, 90)
    assert (path / "quotawarn").stat().st_size == 1
    count = len(messages(path))
    deliver_by_courier(path, *options)
    assert len(messages(path)) == count + 1  # the message, no second warning


def test_a_warning_comes_once_a_day(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"10000S\n9500 5\n")
    start = time.time()
    answers = [warn(path, 90, (start + after).__float__) for after in (0, 1, 86399, 86401, 86402)]
    assert answers == [True, False, False, True, False]
    assert len(messages(path)) == 2


@pytest.mark.parametrize("plant", PLANTED)
def test_a_spoilt_stamp_means_no_warning(path: Path, plant: Callable[[Path], None]) -> None:
    (path / "maildirsize").write_bytes(b"10000S\n9500 5\n")
    plant(path / "quotawarn")
    later = time.time() + 10**6
    assert warn(path, 90, lambda: later) is False
    assert messages(path) == []
    assert not (path / "good").exists() or (path / "good").read_bytes() == b"1S\n9 9\n"


def test_the_state_in_words(path: Path) -> None:
    (path / "maildirsize").write_bytes(b"10000S\n9500 5\n")
    with Maildir(str(path)) as maildir:
        usage = quota.assess(maildir.fd, None)
        assert usage
        assert usage.words() == "9500 of 10000 bytes and 5 messages in use"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("4.a.h,S=5:2,FS", 5),
        ("4.a.h,S=5:2,FST", None),
        ("4.a.h,S=5:2,F,S=9", 5),  # Courier looks before the colon
        ("4.a.h,S=5,S=6:2,", 6),
        ("4.a.h:2,S", len(MESSAGE)),
        ("4.a.h,S=5", 5),
        ("4.a.h,S=:2,S", 0),
        (".4.a.h,S=5:2,S", None),
        ("4.a.h,S=5\n5.b.h,S=6:2,S", 6),
        ("4.a.h:2,S\n5.b.h,S=6:2,S", len(MESSAGE)),
        ("4.a.h,S=5:1,x", 5),
        ("4.a:h,S=5:2,S", len(MESSAGE)),
    ],
)
@pytest.mark.parametrize("others", ["{}.n.h,S=100:2,S", "{}.n.h,S=100", "{}.n.h,S=100:2,a"])
def test_one_odd_name_among_ordinary_ones(tmp_path: Path, name: str, size: int | None, others: str) -> None:
    """Ordinary names are added up all at once."""
    for number in range(3):
        message_in(tmp_path / "cur", others.format(number))
    message_in(tmp_path / "cur", name)
    expected = (300, 3) if size is None else (300 + size, 4)
    with Maildir(str(tmp_path)) as maildir:
        assert quota.measure(maildir.fd) == expected


def replace_by_copy(cur: Path) -> None:
    """As one restores a backup."""
    copy = cur.parent / "copy"
    shutil.copytree(cur, copy)
    shutil.rmtree(cur)
    copy.rename(cur)


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "a message more": (lambda cur: message_in(cur, "9.z.h,S=7:2,"), (7, 1)),
    "one less": (lambda cur: (cur / "0.n.h,S=100:2,S").unlink(), (-100, -1)),
    "one marked as deleted": (lambda cur: (cur / "0.n.h,S=100:2,S").rename(cur / "0.n.h,S=100:2,ST"), (-100, -1)),
    "another in its place": (lambda cur: (cur / "0.n.h,S=100:2,S").rename(cur / "0.n.h,S=300:2,S"), (200, 0)),
    "a copy in place of it": (replace_by_copy, (0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_large_directory_is_read_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """However soon, and with its old time set back; what has not changed is not read."""
    monkeypatch.setattr(quota, "_SETTLED", 20_000_000)  # two ticks of the slowest kernel clock (time(7), CONFIG_HZ=100)
    for number in range(1000):
        message_in(tmp_path / "cur", f"{number}.n.h,S=100:2,S")
    message_in(tmp_path / "cur", "z.n.h")
    cur = tmp_path / "cur"
    before = (100 * 1000 + len(MESSAGE), 1001)
    with Maildir(str(tmp_path)) as maildir:
        servers.wait_for(lambda: time.time_ns() - cur.stat().st_ctime_ns > 40_000_000)
        assert quota.measure(maildir.fd) == before
        (cur / "z.n.h").write_bytes(b"longer than it was " * 100)  # nobody may do that (maildir(5)): it shows who looks
        assert quota.measure(maildir.fd) == before
        time_before = cur.stat().st_mtime_ns
        happen, (size, count) = CHANGES[change]
        happen(cur)
        os.utime(cur, ns=(time_before, time_before))
        assert quota.measure(maildir.fd) == (100 * 1000 + 1900 + size, 1001 + count)
