"""Delivery into a Maildir: maildir(5), Maildir++, and what must happen when the disk or the owner plays tricks."""

import errno
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import strace

from deliver import maildir as maildirs
from deliver.errors import Deferred
from deliver.maildir import FolderUnusable, Maildir, Prepared, spool

ROOT = Path(__file__).resolve().parent.parent
MESSAGE = b"Subject: a\n\n\0\xff no newline at the end"
ROOTS_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="modes do not stop root")

# Delivers 1000 bytes with nothing imported that is not needed; exit 75 and the reason where that fails.
DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from deliver.errors import Deferred
from deliver.maildir import Maildir
try:
    with Maildir(sys.argv[2]) as maildir:
        maildir.prepare(sys.argv[3], [b"x" * 600, b"y" * 400]).commit()
except Deferred as error:
    print(error.line, "|", error.detail)
    sys.exit(75)
"""
WHOLE = b"x" * 600 + b"y" * 400


@pytest.fixture(name="path")
def make_maildir(tmp_path: Path) -> Path:
    """An empty Maildir."""
    path = tmp_path / "Maildir"
    for part in ("tmp", "new", "cur"):
        (path / part).mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    return path


@pytest.fixture(name="maildir")
def open_maildir(path: Path) -> Iterator[Maildir]:
    """The same, open."""
    with Maildir(str(path)) as maildir:
        yield maildir


def files(directory: Path) -> list[bytes]:
    """The contents of all files there."""
    return [file.read_bytes() for file in sorted(directory.iterdir())]


def delivered(maildir: Maildir, folder: str = "INBOX", flags: str = "") -> Prepared:
    """A committed message."""
    prepared = maildir.prepare(folder, [MESSAGE[:5], b"", MESSAGE[5:]], flags)
    prepared.commit()
    return prepared


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def test_a_message_is_stored_byte_for_byte_and_named_as_maildir_5_says(path: Path, maildir: Maildir) -> None:
    prepared = delivered(maildir)

    assert files(path / "new") == [MESSAGE]
    assert files(path / "tmp") == files(path / "cur") == []
    [file] = (path / "new").iterdir()
    assert prepared.name == f"new/{file.name}"
    # Maildir++: ",S=" is exactly the size. cr.yp.to: seconds, a unique part, the host; neither ":" nor "/".
    found = re.fullmatch(r"[0-9]+\.M[0-9]+P[0-9]+Q[0-9]+R[0-9a-f]{16}\.[A-Za-z0-9._-]+,S=([0-9]+)", file.name)
    assert found
    assert int(found[1]) == prepared.size == len(MESSAGE)
    assert len(file.name.rpartition(",")[0]) <= 180
    assert f".{os.uname().nodename[:64]}," in file.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_nothing_is_visible_before_the_commit_and_nothing_left_after_an_abort(path: Path, maildir: Maildir) -> None:
    prepared = maildir.prepare("INBOX", [MESSAGE])
    assert (files(path / "tmp"), files(path / "new"), prepared.name) == ([MESSAGE], [], "")

    prepared.abort()
    prepared.abort()
    assert files(path / "tmp") == files(path / "new") == []


def test_a_message_with_flags_goes_to_cur(path: Path, maildir: Maildir) -> None:
    prepared = delivered(maildir, flags="FS")

    assert files(path / "new") == []
    assert files(path / "cur") == [MESSAGE]
    assert prepared.name.endswith(f",S={len(MESSAGE)}:2,FS")


def test_flags_cannot_lead_out_of_the_maildir(maildir: Maildir) -> None:
    with pytest.raises(ValueError, match="flags"):
        maildir.prepare("INBOX", [MESSAGE], "S/../../x")


def test_an_empty_message_is_a_message(path: Path, maildir: Maildir) -> None:
    maildir.prepare("INBOX", []).commit()

    [file] = (path / "new").iterdir()
    assert file.name.endswith(",S=0")


def test_two_thousand_names_differ(path: Path, maildir: Maildir) -> None:
    names = set()
    for _ in range(2000):
        prepared = maildir.prepare("INBOX", [])
        [name] = os.listdir(path / "tmp")
        names.add(name)
        prepared.abort()
    assert len(names) == 2000


@pytest.mark.parametrize("nodename", ["", "a/b:c\nd", "h" * 255, "\udcff"])
def test_the_hosts_name_cannot_spoil_the_files(
    path: Path, maildir: Maildir, nodename: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((real[0], nodename, *real[2:])))

    delivered(maildir)
    [name] = os.listdir(path / "new")
    assert re.fullmatch(r"[A-Za-z0-9._,=-]+", name)
    assert len(name.rpartition(",")[0]) <= 180


def test_a_folder_is_made_complete_on_first_use(path: Path, maildir: Maildir) -> None:
    assert not maildir.has_folder("Lists.qmail")
    first = delivered(maildir, "Lists.qmail")
    maildir.introduced("Lists.qmail")
    second = delivered(maildir, "Lists.qmail")

    folder = path / ".Lists.qmail"
    assert sorted(os.listdir(folder)) == ["cur", "maildirfolder", "new", "tmp"]
    assert files(folder / "new") == [MESSAGE] * 2
    assert (first.created, second.created) == (True, False)
    assert first.name.startswith(".Lists.qmail/new/")
    assert maildir.has_folder("Lists.qmail")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "maildirfolder").stat().st_mode) == 0o600


@pytest.mark.parametrize("missing", ["tmp", "new", "cur", "maildirfolder"])
def test_an_incomplete_folder_is_completed(path: Path, maildir: Maildir, missing: str) -> None:
    delivered(maildir, "Spam", flags="S" if missing == "new" else "")
    maildir.introduced("Spam")
    victim = path / ".Spam" / missing
    victim.unlink() if missing == "maildirfolder" else victim.rmdir()

    assert maildir.has_folder("Spam")
    assert delivered(maildir, "Spam").created is False
    assert victim.exists()


def test_a_folder_counts_as_new_until_it_is_introduced(path: Path, maildir: Maildir) -> None:
    """What a first delivery that failed, or was killed, has left undone is for the next one to do."""
    (path / ".Spam").mkdir()  # killed between the first mkdir and all others
    assert maildir.prepare("Spam", [MESSAGE]).created
    assert delivered(maildir, "Spam").created
    maildir.introduced("Spam")
    assert not delivered(maildir, "Spam").created


def test_a_folder_of_others_is_not_new(path: Path, maildir: Maildir) -> None:
    """vpopmail's have no maildirfolder, Courier's have one."""
    for name in (".Junk/new", ".Junk/cur", ".Junk/tmp", ".Sent/new", ".Sent/cur", ".Sent/tmp"):
        (path / name).mkdir(parents=True)
    (path / ".Sent" / "maildirfolder").touch()
    assert not delivered(maildir, "Junk").created
    assert not delivered(maildir, "Sent").created


def test_introducing_a_folder_touches_nothing_that_was_put_there(path: Path, maildir: Maildir) -> None:
    delivered(maildir, "Spam")
    mark, other = path / ".Spam" / "maildirfolder", path / "other"
    other.write_bytes(b"")
    other.chmod(0o444)
    mark.unlink()
    mark.hardlink_to(other)
    maildir.introduced("Spam")
    mark.unlink()
    mark.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        maildir.introduced("Spam")
    mark.unlink()
    (path / ".Spam").rename(path / ".Real")
    (path / ".Spam").symlink_to(".Real")
    (path / ".Real" / "maildirfolder").touch(0o444)
    with pytest.raises(OSError, match="Not a directory"):
        maildir.introduced("Spam")
    assert stat.S_IMODE(other.stat().st_mode) == stat.S_IMODE((path / ".Real" / "maildirfolder").stat().st_mode) == 0o444


@pytest.mark.parametrize("name", ["INBOX", "inbox", "Inbox"])
def test_inbox_is_the_root(path: Path, maildir: Maildir, name: str) -> None:
    assert maildir.has_folder(name)
    assert delivered(maildir, name).name.startswith("new/")
    assert os.listdir(path / "new")


@pytest.mark.parametrize("part", ["tmp", "new", "cur"])
def test_a_missing_part_of_the_maildir_is_made(path: Path, part: str) -> None:
    (path / part).rmdir()
    with Maildir(str(path)) as maildir:
        delivered(maildir)
    assert files(path / "new") == [MESSAGE]
    assert stat.S_IMODE((path / part).stat().st_mode) == 0o700


def replace_by_file(path: Path) -> None:
    """Put a file where the Maildir was."""
    path.rename(path.with_name("away"))
    path.write_bytes(b"")


def replace_by_link(path: Path) -> None:
    """Put a symbolic link where the Maildir was."""
    path.rename(path.with_name("away"))
    path.symlink_to("away")


def remove(path: Path) -> None:
    """Take the Maildir away."""
    path.rename(path.with_name("away"))


def spoil_part(path: Path) -> None:
    """Put a file where new/ was."""
    (path / "new").rmdir()
    (path / "new").write_bytes(b"")


def link_part(path: Path) -> None:
    """Put a symbolic link where new/ was."""
    (path / "new").rename(path.with_name("outside"))
    (path / "new").symlink_to("../outside")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (replace_by_file, "Not a directory"),
        (replace_by_link, "is a symbolic link"),
        (remove, "No such file or directory"),
        (spoil_part, "new is not a directory"),
        (link_part, "new is not a directory"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_maildir_that_cannot_be_used_is_tried_again_later(
    path: Path, spoil: Callable[[Path], None], words: str, slash: str
) -> None:
    spoil(path)
    before = descriptors()
    with pytest.raises(Deferred) as caught:
        Maildir(str(path) + slash)
    assert caught.value.line == "4.2.1 Mailbox is not accessible"
    assert caught.value.detail == f"{path}{slash}: {words}"
    assert descriptors() == before


def folder_is_a_file(folder: Path) -> None:
    """A file."""
    folder.write_bytes(b"")


def folder_is_a_link(folder: Path) -> None:
    """A symbolic link to a good folder outside."""
    for part in ("tmp", "new", "cur"):
        (folder.parent.parent / "outside" / part).mkdir(parents=True)
    folder.symlink_to("../outside")


def folder_dangles(folder: Path) -> None:
    """A symbolic link to nothing."""
    folder.symlink_to("nowhere")


def folder_is_a_fifo(folder: Path) -> None:
    """A FIFO: opening it must not wait for a writer."""
    os.mkfifo(folder)


def tmp_leads_outside(folder: Path) -> None:
    """A folder whose tmp/ is a symbolic link."""
    (folder.parent.parent / "outside").mkdir()
    for part in ("new", "cur"):
        (folder / part).mkdir(parents=True)
    (folder / "tmp").symlink_to("../../outside")


def new_is_a_file(folder: Path) -> None:
    """A folder whose new is a file."""
    folder.mkdir()
    (folder / "new").write_bytes(b"")


SPOILT = [folder_is_a_file, folder_is_a_link, folder_dangles, folder_is_a_fifo, tmp_leads_outside, new_is_a_file]


def unread() -> Iterator[bytes]:
    """Chunks that must not be asked for, since the caller needs them for the inbox."""
    yield pytest.fail("the message was read")


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_folder_is_left_alone_and_reported(
    path: Path, maildir: Maildir, spoil: Callable[[Path], None]
) -> None:
    spoil(path / ".Spam")
    outside = path.parent / "outside"
    before = descriptors()

    assert not maildir.has_folder("Spam")
    with pytest.raises(FolderUnusable, match=r"Maildir/\.Spam: "):
        maildir.prepare("Spam", unread())
    assert [file for file in outside.rglob("*") if file.is_file()] == []
    assert descriptors() == before


@ROOTS_ONLY
def test_a_folder_of_another_user_is_not_used(path: Path, maildir: Maildir) -> None:
    delivered(maildir, "Spam")
    os.chown(path / ".Spam", 65534, 65534)
    assert not maildir.has_folder("Spam")
    with pytest.raises(FolderUnusable, match="belongs to another user"):
        maildir.prepare("Spam", unread())


@NOT_ROOT
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_that_may_not_be_written_is_not_used(path: Path, maildir: Maildir, mode: int) -> None:
    delivered(maildir, "Spam")
    (path / ".Spam" / "tmp").chmod(mode)
    with pytest.raises(FolderUnusable, match="Permission denied"):
        maildir.prepare("Spam", unread())
    (path / ".Spam" / "tmp").chmod(0o700)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".Spam", "Spam.", "a..b", "a\0b", "a\nb", "\udcff", "x" * 300]
)
def test_a_name_that_is_no_folders_is_not_used(path: Path, maildir: Maildir, name: str) -> None:
    assert not maildir.has_folder(name)
    with pytest.raises(FolderUnusable):
        maildir.prepare(name, unread())
    assert sorted(os.listdir(path)) == ["cur", "new", "tmp"]


def test_a_file_is_never_wider_than_its_directory(path: Path, maildir: Maildir) -> None:
    (path / "tmp").chmod(0o500 if os.geteuid() == 0 else 0o770)
    delivered(maildir)
    [file] = (path / "new").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == (0o400 if os.geteuid() == 0 else 0o600)
    (path / "tmp").chmod(0o700)


def test_what_reading_the_message_raises_passes_through(path: Path, maildir: Maildir) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"a"
        raise KeyboardInterrupt

    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        maildir.prepare("INBOX", breaks())
    assert files(path / "tmp") == []
    assert descriptors() == before


def test_no_descriptor_is_left_open(maildir: Maildir) -> None:
    before = descriptors()
    delivered(maildir)
    delivered(maildir, "Spam", "S")
    maildir.prepare("Spam", [MESSAGE]).abort()
    assert maildir.has_folder("Spam")
    assert descriptors() == before


def test_new_is_made_again_when_it_vanishes_before_the_commit(path: Path, maildir: Maildir) -> None:
    prepared = maildir.prepare("INBOX", [MESSAGE])
    (path / "new").rmdir()
    prepared.commit()
    assert files(path / "new") == [MESSAGE]


def test_a_message_whose_file_vanishes_is_tried_again_later(path: Path, maildir: Maildir) -> None:
    prepared = maildir.prepare("INBOX", [MESSAGE])
    for file in (path / "tmp").iterdir():
        file.unlink()
    with pytest.raises(Deferred, match="No such file"):
        prepared.commit()
    assert files(path / "new") == []


def test_a_commit_outlives_the_closed_maildir(path: Path) -> None:
    with Maildir(str(path)) as maildir:
        prepared = maildir.prepare("INBOX", [MESSAGE])
    prepared.commit()
    assert files(path / "new") == [MESSAGE]


def test_a_link_that_nfs_made_although_it_says_eexist_counts(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: str, target: str, **places: Any) -> None:
        """NFS: the server did it, the answer was lost, the client asked again."""
        real(source, target, **places)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link)
    prepared = delivered(maildir)
    assert files(path / "new") == [MESSAGE]
    assert (path / prepared.name).exists()
    assert files(path / "tmp") == []


def test_another_message_is_never_replaced(path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_source: str, target: str, **_places: int) -> None:
        """A file system without hard links, and a name that somebody else takes at the last moment."""
        if not any((path / "new").iterdir()):
            (path / "new" / target).write_bytes(b"another")
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    delivered(maildir)
    assert sorted(files(path / "new")) == sorted([b"another", MESSAGE])


@pytest.mark.parametrize("plant", [lambda file: file.write_bytes(b"another"), os.mkfifo, lambda file: file.symlink_to("../secret")])
def test_what_lies_under_our_name_in_tmp_is_not_touched(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], None]
) -> None:
    (path / "secret").write_bytes(b"secret")
    plant(path / "tmp" / "planted")
    names = iter(["planted", "planted", "ours", "final"])
    monkeypatch.setattr(maildirs, "_unique_name", lambda: next(names))
    prepared = delivered(maildir)
    assert prepared.name == f"new/final,S={len(MESSAGE)}"
    assert os.listdir(path / "tmp") == ["planted"]
    assert (path / "secret").read_bytes() == b"secret"
    assert not (path / "tmp" / "planted").is_file() or (path / "tmp" / "planted").read_bytes() in (b"another", b"secret")


def test_where_every_name_is_taken_it_is_tried_again_later(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path / "tmp" / "planted").write_bytes(b"another")
    monkeypatch.setattr(maildirs, "_unique_name", lambda: "planted")
    with pytest.raises(Deferred, match="File exists"):
        maildir.prepare("INBOX", [MESSAGE])
    assert files(path / "tmp") == [b"another"]


def test_an_inbox_that_was_spoilt_meanwhile_is_tried_again_later(path: Path, maildir: Maildir) -> None:
    """FolderUnusable would send it to the inbox once more. And nothing stays open."""
    (path / "tmp").rmdir()
    (path / "tmp").symlink_to("new")
    before = descriptors()
    with pytest.raises(Deferred, match="Not a directory"):
        maildir.prepare("INBOX", [MESSAGE])
    assert descriptors() == before


def test_what_cannot_be_told_now_is_no_answer(path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail to user+Work must not go into the inbox because an NFS server was restarted."""
    delivered(maildir, "Work")

    def stale(*_: object, **__: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "open", stale)
    with pytest.raises(Deferred, match="Stale"):
        maildir.has_folder("Work")


def test_a_spool_file_has_no_name(path: Path) -> None:
    descriptor = spool(str(path))
    try:
        assert os.write(descriptor, MESSAGE) == len(MESSAGE)
        assert os.pread(descriptor, 100, 0) == MESSAGE
        assert files(path / "tmp") == []
        assert os.fstat(descriptor).st_dev == path.stat().st_dev
    finally:
        os.close(descriptor)


def test_a_spool_file_has_no_name_even_where_the_file_system_wants_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """A file system without O_TMPFILE, such as NFS."""
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_)
    test_a_spool_file_has_no_name(path)


def test_spooling_without_a_maildir_is_tried_again_later(tmp_path: Path) -> None:
    with pytest.raises(Deferred, match="No such file"):
        spool(str(tmp_path / "nowhere"))


def run_injected(path: Path, injection: str, folder: str = "INBOX") -> tuple[int, str]:
    """Deliver in a process of its own while strace makes one system call fail; the exit code and what it said."""
    call = injection.partition(":")[0]
    command = [strace.needed(), "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={injection}"]
    command += [sys.executable, "-I", "-c", DRIVER, str(ROOT), str(path), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("injection", "line", "words"),
    [
        ("fsync:error=EIO:when=1", "4.3.0", "Input/output error"),
        ("write:error=ENOSPC:when=2", "4.3.1", "No space left on device"),
        ("write:error=EDQUOT:when=1", "4.3.1", "quota exceeded"),
        ("write:retval=5:when=1", "4.3.0", "bytes are on disk"),  # a file system that lies
        ("write:retval=0:when=1", "4.3.1", "No space left on device"),  # and one that makes no progress
        ("linkat:error=ENOSPC:when=1", "4.3.1", "No space left on device"),
        ("linkat:error=EROFS:when=1", "4.3.0", "Read-only"),
        ("linkat:error=EEXIST:when=1+", "4.3.0", "File exists"),
    ],
)
def test_a_failing_disk_defers_and_leaves_nothing(path: Path, injection: str, line: str, words: str) -> None:
    code, said = run_injected(path, injection)
    assert code == 75
    assert said.startswith(line)
    assert f"{path}/" in said
    assert words in said
    assert files(path / "tmp") == files(path / "new") == files(path / "cur") == []


def test_a_failing_directory_sync_defers_and_keeps_the_message(path: Path) -> None:
    code, said = run_injected(path, "fsync:error=EIO:when=2")
    assert code == 75
    assert "Input/output error" in said
    assert files(path / "new") == [WHOLE]  # a duplicate, when the MTA tries again, is better than a loss
    assert files(path / "tmp") == []


@pytest.mark.parametrize(
    "injection",
    [
        "fsync:error=EINVAL:when=2",  # a file system that cannot sync directories
        "linkat:error=EXDEV:when=1",
        "linkat:error=EPERM:when=1",  # and some that have no hard links
        "linkat:error=EOPNOTSUPP:when=1",
        "linkat:error=ENOSYS:when=1",
        "linkat:error=EEXIST:when=1",  # a name already taken
        "unlinkat:error=EIO:when=1",  # only the second name stays
    ],
)
def test_a_poor_file_system_is_good_enough(path: Path, injection: str) -> None:
    assert run_injected(path, injection) == (0, "")
    assert files(path / "new") == [WHOLE]
    assert (files(path / "tmp") == []) is not injection.startswith("unlinkat")


@pytest.mark.parametrize("call", ["fsync:when=1", "linkat:when=1", "fsync:when=2", "unlinkat:when=1"])
def test_a_killed_delivery_leaves_no_partial_message(path: Path, call: str) -> None:
    name, _, when = call.partition(":")
    code, _said = run_injected(path, f"{name}:signal=SIGKILL:{when}")
    assert code not in (0, 75)
    assert files(path / "new") == ([WHOLE] if call in ("fsync:when=2", "unlinkat:when=1") else [])


@pytest.mark.parametrize(
    ("injection", "code"), [("mkdirat:error=ENOSPC:when=1", 75), ("mkdirat:error=EEXIST:when=2", 75)]
)
def test_a_folder_that_cannot_be_made_now_is_tried_again_later(path: Path, injection: str, code: int) -> None:
    assert run_injected(path, injection, "Spam")[0] == code
    assert run_injected(path, "fsync:error=EINVAL:when=99", "Spam")[0] == 0
    assert files(path / ".Spam" / "new") == [WHOLE]


def test_everything_a_new_folder_needs_is_synced_before_the_message_is_visible(path: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = [strace.needed(), "-qq", "-y", "-o", str(trace), "-e", "trace=fsync,linkat,fdatasync"]
    command += [sys.executable, "-I", "-c", DRIVER, str(ROOT), str(path), "Spam"]
    subprocess.run(command, check=True, timeout=60)

    before, _, after = trace.read_text().partition("linkat(")
    synced = re.findall(r"fsync\(\d+<(.*)>\) += 0", before)
    folder = f"{path}/.Spam"
    *directories, file = synced
    assert file.startswith(f"{folder}/tmp/")
    assert {f"{folder}/new", f"{folder}/cur", f"{folder}/tmp"} <= set(directories[:-2])
    assert directories[-2:] == [folder, str(path)]  # once their entries are complete
    assert f"<{folder}/new>" in after.partition("fsync(")[2]


@pytest.mark.parametrize(("options", "line"), [("size=64k", "4.3.1"), ("size=4m,nr_inodes=5", "4.3.1")])
def test_a_full_disk_defers(tmp_path: Path, options: str, line: str) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    inner = f"mount -t tmpfs -o {options} tmpfs {mount} 2>&1 || exit 99; mkdir {mount}/M; cd {mount}/M; "
    inner += "mkdir tmp new cur; head -c 65536 /dev/zero > cur/filler; "
    deliver = [sys.executable, "-I", "-c", DRIVER, str(ROOT), f"{mount}/M", "INBOX"]
    inner += shlex.join(deliver) + "; code=$?; ls tmp new; exit $code"
    done = subprocess.run(
        [servers.needs("unshare"), "-rm", "sh", "-c", inner], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode in (1, 99):
        pytest.skip(f"a private tmpfs cannot be mounted here: {done.stdout}{done.stderr}")
    assert done.returncode == 75
    assert done.stdout.startswith(line)
    assert done.stdout.endswith("new:\n\ntmp:\n")
