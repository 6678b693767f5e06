"""Subscriptions as Courier (imapd.c) and Dovecot (subscription-file.c, file-dotlock.c) keep them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deliver import subscriptions
from deliver.mailbox import Mailbox
from deliver.subscriptions import subscribe

ROOT = Path(__file__).resolve().parent.parent
COURIER = "courierimapsubscribed"
DOVECOT = "subscriptions"
V2 = b"V\t2\n\n"
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="modes do not stop root")


@pytest.fixture(name="path")
def make_maildir(tmp_path: Path) -> Path:
    """An empty Maildir."""
    path = tmp_path / "Maildir"
    for part in ("tmp", "new", "cur"):
        (path / part).mkdir(parents=True)
    return path


@pytest.fixture(name="maildir")
def open_maildir(path: Path) -> Iterator[int]:
    """The same, open."""
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_both_lists_are_made_where_there_is_none(path: Path, maildir: int) -> None:
    assert subscribe(maildir, "Lists.qmail") == ""
    assert (path / COURIER).read_bytes() == b"INBOX.Lists.qmail\n"
    assert (path / DOVECOT).read_bytes() == b"V\t2\n\nLists\tqmail\n"
    assert [(path / name).stat().st_mode & 0o777 for name in (COURIER, DOVECOT)] == [0o600, 0o600]
    assert sorted(os.listdir(path)) == [COURIER, "cur", "new", DOVECOT, "tmp"]
    assert os.listdir(path / "tmp") == []


@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_only_the_list_that_exists_is_changed(path: Path, maildir: int, name: str) -> None:
    (path / name).write_bytes(b"")
    subscribe(maildir, "Spam")
    assert (path / name).read_bytes()
    assert not (path / ({COURIER, DOVECOT} - {name}).pop()).exists()


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (COURIER, b"INBOX\nINBOX.Sent\n", b"INBOX\nINBOX.Sent\nINBOX.A.B\n"),
        (COURIER, b"INBOX.Sent", b"INBOX.Sent\nINBOX.A.B\n"),
        (COURIER, b"INBOX.A.B\n", b"INBOX.A.B\n"),
        (COURIER, b"INBOX.A.B", b"INBOX.A.B\n"),
        (COURIER, b"INBOX.a.b\nA.B\n", b"INBOX.a.b\nA.B\nINBOX.A.B\n"),  # three different folders
        (COURIER, b"\xff\0junk\r\n\n#shared.x\n", b"\xff\0junk\r\n\n#shared.x\nINBOX.A.B\n"),
        (DOVECOT, V2 + b"Sent\nX\tY\n", V2 + b"Sent\nX\tY\nA\tB\n"),
        (DOVECOT, V2, V2 + b"A\tB\n"),
        (DOVECOT, V2 + b"A\tB\nSent\n", V2 + b"A\tB\nSent\n"),
        (DOVECOT, V2 + b"A.B\n", V2 + b"A.B\n"),  # Dovecot reads this form there too
        (DOVECOT, V2 + b"Sent", V2 + b"Sent\nA\tB\n"),  # Dovecot would drop "Sent" with the next change
        (DOVECOT, V2 + b"A\tB", V2 + b"A\tB\n"),
        (DOVECOT, b"Sent\nX.Y\n", b"Sent\nX.Y\nA.B\n"),  # version 1 stays version 1
        (DOVECOT, b"", b"A.B\n"),  # and so does an empty file
        (DOVECOT, b"A.B\n", b"A.B\n"),
        (DOVECOT, b"V\t2\nSent\n", b"V\t2\nSent\nA.B\n"),  # not a version 2 header: the empty line is missing
        (DOVECOT, V2 + b"\x01tx\n\xff\0\r\n", V2 + b"\x01tx\n\xff\0\r\nA\tB\n"),
    ],
)
def test_a_line_is_added_and_nothing_else_changed(
    path: Path, maildir: int, name: str, before: bytes, after: bytes
) -> None:
    (path / name).write_bytes(before)
    assert subscribe(maildir, "A.B") == ""
    assert (path / name).read_bytes() == after


@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_a_list_that_has_the_folder_is_not_touched(path: Path, maildir: int, name: str) -> None:
    subscribe(maildir, "Spam")
    before = (path / name).stat()
    subscribe(maildir, "Spam")
    after = (path / name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_the_mode_is_kept(path: Path, maildir: int, name: str) -> None:
    (path / name).write_bytes(b"")
    (path / name).chmod(0o640)
    subscribe(maildir, "Spam")
    assert (path / name).read_bytes()
    assert (path / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_the_owner_is_kept(path: Path, maildir: int, name: str) -> None:
    (path / name).write_bytes(b"")
    os.chown(path, 65534, 65533)
    os.chown(path / name, 65534, 65533)
    subscribe(maildir, "Spam")
    assert (path / name).read_bytes()
    assert ((path / name).stat().st_uid, (path / name).stat().st_gid) == (65534, 65533)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_another_users_list_is_left_alone(path: Path, maildir: int, name: str) -> None:
    (path / name).write_bytes(b"")
    os.chown(path / name, 65534, 65533)
    assert "not a plain file of this user" in subscribe(maildir, "Spam")
    assert (path / name).read_bytes() == b""


@pytest.mark.parametrize("folder", ["Lists\nINBOX.Evil", "\0", "\udcff"])
def test_a_name_that_is_no_line_is_not_written(path: Path, maildir: int, folder: str) -> None:
    assert "cannot be a line" in subscribe(maildir, folder)
    assert sorted(os.listdir(path)) == ["cur", "new", "tmp"]


def test_names_are_written_as_they_are_stored(path: Path, maildir: int) -> None:
    subscribe(maildir, "Спам")
    assert (path / COURIER).read_bytes().decode() == "INBOX.Спам\n"


def plant_link(file: Path) -> None:
    """A symbolic link to a list outside."""
    file.parent.parent.joinpath("outside").write_bytes(b"")
    file.symlink_to("../outside")


def plant_dangling(file: Path) -> None:
    """A symbolic link to nothing."""
    file.symlink_to("../outside")


def plant_directory(file: Path) -> None:
    """A directory."""
    file.mkdir()


def plant_fifo(file: Path) -> None:
    """A FIFO, which nobody writes to."""
    os.mkfifo(file)


def plant_hard_link(file: Path) -> None:
    """Another name of a file that may be somebody else's."""
    file.write_bytes(b"")
    file.parent.parent.joinpath("outside").hardlink_to(file)


def plant_giant(file: Path) -> None:
    """Over 1 MiB."""
    file.write_bytes(b"x" * 1048577)


@pytest.mark.parametrize(
    "plant", [plant_link, plant_dangling, plant_directory, plant_fifo, plant_hard_link, plant_giant]
)
@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_what_is_not_a_list_of_ours_is_left_alone(
    path: Path, maildir: int, name: str, plant: Callable[[Path], None]
) -> None:
    plant(path / name)
    before = (path / name).lstat()

    problem = subscribe(maildir, "Spam")

    assert problem.startswith(f"{name}: ")
    after = (path / name).lstat()
    assert (after.st_ino, after.st_size, after.st_mode) == (before.st_ino, before.st_size, before.st_mode)
    outside = path.parent / "outside"
    assert not outside.exists() or outside.read_bytes() == b""
    assert os.listdir(path / "tmp") == []
    assert not (path / "subscriptions.lock").exists()


@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_a_megabyte_is_still_a_list(path: Path, maildir: int, name: str) -> None:
    big = b"x" * 1048500 + b"\n"
    (path / name).write_bytes(big)
    assert subscribe(maildir, "Spam") == ""
    assert (path / name).read_bytes().startswith(big)
    assert len((path / name).read_bytes()) > len(big)


@NOT_ROOT
def test_a_read_only_maildir_is_left_alone(path: Path, maildir: int) -> None:
    path.chmod(0o500)
    assert "Permission denied" in subscribe(maildir, "Spam")
    path.chmod(0o700)


def test_dovecots_lock_is_waited_for(path: Path, maildir: int) -> None:
    """Dovecot writes the new list into the lock and renames that over the list: both entries must stay."""
    (path / DOVECOT).write_bytes(V2 + b"Sent\n")
    lock = path / "subscriptions.lock"
    lock.write_bytes(V2 + b"Sent\nDrafts\n")
    said: list[str] = []
    ours = threading.Thread(target=lambda: said.append(subscribe(maildir, "Spam")))
    ours.start()
    # Once ours has waited at least one round: its only sign is that time passes.
    ours.join(0.2)
    assert ours.is_alive()
    lock.rename(path / DOVECOT)
    ours.join(10)
    assert said == [""]
    assert (path / DOVECOT).read_bytes() == V2 + b"Sent\nDrafts\nSpam\n"
    assert not lock.exists()


def test_a_lock_that_stays_is_left_to_its_owner(path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "_LOCK_WAIT", 0.1)
    (path / DOVECOT).write_bytes(V2)
    (path / COURIER).write_bytes(b"")
    (path / "subscriptions.lock").write_bytes(b"theirs")
    used = time.process_time()

    assert subscribe(maildir, "Spam").startswith("subscriptions: ")

    assert time.process_time() - used < 0.05  # it slept
    assert (path / DOVECOT).read_bytes() == V2
    assert (path / COURIER).read_bytes() == b"INBOX.Spam\n"
    assert (path / "subscriptions.lock").read_bytes() == b"theirs"


@pytest.mark.parametrize("plant", [Path.touch, os.mkfifo, lambda lock: lock.symlink_to("new"), Path.mkdir])
def test_a_lock_that_nobody_holds_any_more_is_taken_over(
    path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], None]
) -> None:
    """As by Dovecot (file-dotlock.c); else one killed delivery would leave the list locked for ever."""
    monkeypatch.setattr(subscriptions, "_LOCK_WAIT", 0.5)
    (path / DOVECOT).write_bytes(V2)
    lock = path / "subscriptions.lock"
    plant(lock)
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    if lock.is_dir() and not lock.is_symlink():
        assert subscribe(maildir, "Spam").startswith("subscriptions: ")
        return
    assert subscribe(maildir, "Spam") == ""
    assert (path / DOVECOT).read_bytes() == V2 + b"Spam\n"
    assert not os.path.lexists(lock)


def test_lists_half_made_are_both_made_in_the_end(path: Path, maildir: int) -> None:
    """A delivery was killed when Courier's list was there and Dovecot's was not."""
    (path / COURIER).write_bytes(b"INBOX.Spam\n")
    assert subscribe(maildir, "Spam") == ""
    assert (path / COURIER).read_bytes() == b"INBOX.Spam\n"
    assert (path / DOVECOT).read_bytes() == V2 + b"Spam\n"


def test_what_could_not_be_subscribed_to_is_at_the_next_message(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dovecot held its lock for too long when the folder was made."""
    monkeypatch.setattr(subscriptions, "_LOCK_WAIT", 0.1)
    (path / DOVECOT).write_bytes(V2)
    lock = path / "subscriptions.lock"
    for busy, expected in ((True, V2), (False, V2 + b"Spam\n")):
        if busy:
            lock.touch()
        mailbox = Mailbox(str(path), None, 100, "")
        mailbox.prepare("Spam", [b"x\n"]).commit()
        assert bool(mailbox.settle()) is busy
        mailbox.close()
        lock.unlink(missing_ok=True)
        assert (path / DOVECOT).read_bytes() == expected


def test_a_lock_taken_away_is_not_renamed(path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dovecot removes a lock that it takes for abandoned; what is there then belongs to somebody else."""
    (path / DOVECOT).write_bytes(V2)
    lock = path / "subscriptions.lock"
    real = os.fsync

    def fsync(descriptor: int) -> None:
        """Stall for so long that another program breaks the lock."""
        real(descriptor)
        lock.unlink()
        lock.write_bytes(b"theirs")

    monkeypatch.setattr(os, "fsync", fsync)
    assert "taken away" in subscribe(maildir, "Spam")
    assert (path / DOVECOT).read_bytes() == V2
    assert lock.read_bytes() == b"theirs"


def test_a_change_by_courier_at_the_same_time_is_not_lost(
    path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other program renames its list while we write ours."""
    (path / COURIER).write_bytes(b"INBOX.Sent\n")
    real = os.fsync
    rounds = iter([b"INBOX.Sent\nINBOX.Drafts\n"])

    def fsync(descriptor: int) -> None:
        real(descriptor)
        for theirs in rounds:
            (path / "theirs").write_bytes(theirs)
            (path / "theirs").rename(path / COURIER)

    monkeypatch.setattr(os, "fsync", fsync)
    assert subscribe(maildir, "Spam") == ""
    assert (path / COURIER).read_bytes() == b"INBOX.Sent\nINBOX.Drafts\nINBOX.Spam\n"
    assert os.listdir(path / "tmp") == []


def test_our_line_is_added_again_when_couriers_rename_comes_last(
    path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / COURIER).write_bytes(b"INBOX.Sent\n")
    real = os.rename
    rounds = iter([b"INBOX.Sent\nINBOX.Drafts\n"])

    def rename(source: str, target: str, **places: int) -> None:
        real(source, target, **places)
        for theirs in rounds:
            (path / COURIER).write_bytes(theirs)

    monkeypatch.setattr(os, "rename", rename)
    assert subscribe(maildir, "Spam") == ""
    assert (path / COURIER).read_bytes() == b"INBOX.Sent\nINBOX.Drafts\nINBOX.Spam\n"


def test_an_endless_fight_with_courier_is_given_up(path: Path, maildir: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / COURIER).write_bytes(b"INBOX.0\n")
    real = os.rename
    renamed = []

    def rename(source: str, target: str, **places: int) -> None:
        real(source, target, **places)
        renamed.append(target)
        (path / COURIER).write_bytes(b"INBOX.%d\n" % len(renamed))

    monkeypatch.setattr(os, "rename", rename)
    assert "changed by others" in subscribe(maildir, "Spam")
    assert len(renamed) == 3


# Ten processes that all start when the parent closes the pipe, each with a folder of its own.
DRIVER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from deliver.subscriptions import subscribe
wait, go = os.pipe()
children = []
for number in range(10):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)
        os._exit(bool(subscribe(os.open(sys.argv[2], os.O_RDONLY), f"Folder.{number}")))
    children.append(child)
os.close(go)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_ten_folders_at_once_are_all_in_dovecots_list(path: Path) -> None:
    (path / DOVECOT).write_bytes(V2 + b"Sent\n")
    subprocess.run([sys.executable, "-I", "-c", DRIVER, str(ROOT), str(path)], check=True, timeout=60)
    lines = (path / DOVECOT).read_bytes().splitlines()
    assert lines[:3] == [b"V\t2", b"", b"Sent"]
    assert sorted(lines[3:]) == [b"Folder\t%d" % number for number in range(10)]
    assert not (path / "subscriptions.lock").exists()


@pytest.mark.parametrize("name", [COURIER, DOVECOT])
def test_a_full_disk_leaves_the_old_list(path: Path, maildir: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / name).write_bytes(V2)

    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    assert "No space left" in subscribe(maildir, "Spam")
    assert (path / name).read_bytes() == V2
    assert os.listdir(path / "tmp") == []
    assert not (path / "subscriptions.lock").exists()
