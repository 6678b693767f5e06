"""A hostile owner of the mailbox, a hostile envelope: nothing outside the Maildir is written or read, nothing hangs.

The delivery runs with the uid to which everything belongs, the canaries outside included: as where all mailboxes of a
host are one user's. So only the code, not the kernel, keeps it out.
"""

import os
import shlex
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import forked
import main_job
import pytest

import deliver.subscriptions

SECRET = b"2000S,1000C\n 1 1\nINBOX.Secret\nthe neighbour's secret\n"
SPAM_LINE = b"X-Spam-Status: Yes, score=7.0 required=5.0 tests=A\n"
SETTINGS = """
[spam]
trust-header = "X-Spam-Status"
[quota]
warn-at = 1
[[rule]]
quarantine = true
[rule.when]
subject = "virus*"
[log]
to = "{log}"
"""
LONGEST = 10.0  # seconds

PARTS = """
Maildir Maildir/tmp Maildir/new Maildir/cur Maildir/.Spam Maildir/.Spam/tmp Maildir/.Spam/new Maildir/.Spam/cur
Maildir/.Spam/maildirfolder Maildir/maildirsize Maildir/subscriptions Maildir/subscriptions.lock
Maildir/courierimapsubscribed Maildir/quotawarn Maildir/deliver Maildir/deliver/quarantine
Maildir/deliver/quarantine/tmp Maildir/deliver/quarantine/messages Maildir/deliver/quarantine/held mailfilter.toml
""".split()



def do_not_wait() -> None:
    """For a lock that nobody will ever give back."""
    deliver.subscriptions._LOCK_WAIT = 0.2



class Neighbour:
    """Another user's home beside ours, with a Maildir of the same shape, and what it looked like."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        for part in ("tmp", "new", "cur", ".Spam/tmp", ".Spam/new", ".Spam/cur", "deliver/quarantine/tmp"):
            (directory / "Maildir" / part).mkdir(parents=True)
        for part in ("messages", "held"):
            (directory / "Maildir" / "deliver" / "quarantine" / part).mkdir()
        for name in ("secret", "Maildir/maildirsize", "Maildir/subscriptions", "Maildir/courierimapsubscribed"):
            (directory / name).write_bytes(SECRET)
        main_job.own(directory)
        self.before: list[tuple[object, ...]] = []

    def remember(self) -> None:
        """From here on nothing may change. The times of access lie before those of change, so that a read would show
        even where the file system is mounted with relatime (mount(8)).
        """
        for path in self.path.rglob("*"):
            os.utime(path, (1, 2))
        self.before = self._state()

    def assert_untouched(self) -> None:
        """Not written, not read."""
        assert self._state() == self.before

    def _state(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in sorted(self.path.rglob("*")):
            state = path.lstat()
            read = state.st_atime_ns if stat.S_ISREG(state.st_mode) else 0  # listing it, as here, reads a directory
            found.append((str(path), state.st_mode, state.st_size, state.st_mtime_ns, state.st_uid, read))
        return found


@pytest.fixture(name="home")
def make_home(scratch: Path) -> main_job.Home:
    """A user with spam folder and quarantine at hand; the quota's warning is due."""
    path = scratch / "user"
    path.mkdir()
    settings = SETTINGS.format(log=scratch / "log")
    return main_job.Home(path, Path("/nonexistent"), settings, quota="1000000S\n      900000            1\n")


@pytest.fixture(name="neighbour")
def make_neighbour(scratch: Path) -> Neighbour:
    """The one to protect."""
    return Neighbour(scratch / "neighbour")


def mail(number: int) -> Iterator[tuple[str, bytes]]:
    """Ham, spam and what is to be held; each with a mark by which it is found again."""
    for kind, lines in (("ham", b""), ("spam", SPAM_LINE), ("virus", b"")):
        mark = f"{kind}-{number}-mark"
        yield mark, lines + main_job.message(f"{kind} {number}", mark.encode() + b"\n")


def deliver_all(home: main_job.Home, number: int = 0) -> dict[str, int]:
    """Deliver one of each; the codes by their marks."""
    codes = {}
    for mark, content in mail(number):
        ended = forked.deliver(home.environment(), home.path.parent, "--maildir", str(home.maildir), stdin=content, prepare=do_not_wait, seconds=LONGEST)  # fmt: skip
        assert ended.code in (0, 75), ended
        assert ended.stderr == b""
        assert b"/" not in ended.stdout
        codes[mark] = ended.code
    return codes


def in_place(root: str) -> set[str]:
    """The parts of a path, the racer's own directories by the names that they had."""
    return {part.removesuffix(".aside") for part in Path(root).parts}


def assert_kept(directory: Path, codes: dict[str, int]) -> None:
    """Each message that was accepted is there once, below ``directory``, no link followed; no other is in new or cur."""
    found: list[str] = []
    for root, _, names in os.walk(directory):
        for name in names:
            path = Path(root) / name
            if stat.S_ISREG(path.lstat().st_mode) and {"new", "cur", "messages"} & in_place(root):
                found += [mark for mark in codes if mark.encode() in path.read_bytes()]
    for mark, code in codes.items():
        assert found.count(mark) == (1 if code == 0 else 0), (mark, code, found)


# --- what may stand in the place of a part ---


def to_a_directory(path: Path, neighbour: Neighbour) -> None:
    path.symlink_to(neighbour.path / "Maildir")


def to_the_same(path: Path, neighbour: Neighbour) -> None:
    """A link to the neighbour's own part of that name."""
    inside = "Maildir" if path.name == "Maildir" else "Maildir/" + str(path).partition("/Maildir/")[2]
    path.symlink_to(neighbour.path / inside)


def to_a_file(path: Path, neighbour: Neighbour) -> None:
    path.symlink_to(neighbour.path / "secret")


def to_nowhere(path: Path, neighbour: Neighbour) -> None:
    path.symlink_to(neighbour.path / "not-there")


def hard_link(path: Path, neighbour: Neighbour) -> None:
    path.hardlink_to(neighbour.path / "secret")


def fifo(path: Path, _neighbour: Neighbour) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, _neighbour: Neighbour) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")  # a path of its own may be too long: unix(7)
        finally:
            os.close(directory)


def directory(path: Path, _neighbour: Neighbour) -> None:
    path.mkdir()


def device(path: Path, _neighbour: Neighbour) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # zero: endless


PLANTS = [to_the_same, to_a_file, hard_link, fifo, device]
MORE = [pytest.param(plant, marks=pytest.mark.faults) for plant in (to_a_directory, to_nowhere, unix_socket, directory)]


@pytest.mark.parametrize("plant", [*PLANTS, *MORE])
@pytest.mark.parametrize("part", PARTS)
def test_what_is_planted_is_neither_written_nor_read(
    home: main_job.Home, neighbour: Neighbour, part: str, plant: Callable[[Path, Neighbour], None]
) -> None:
    """Mail is delivered elsewhere in the Maildir, or tried again."""
    path = home.path / part
    for parent in reversed(path.relative_to(home.path).parents):
        (home.path / parent).mkdir(exist_ok=True)
    if path.is_dir():
        move_aside(path)
    elif path.exists():
        path.unlink()
    plant(path, neighbour)
    main_job.own(home.path)
    planted = path.lstat()
    neighbour.remember()
    codes = deliver_all(home)
    if (part, plant) == ("mailfilter.toml", hard_link):
        neighbour.before = [(*row[:5], 0) for row in neighbour.before]  # it is the user's own plain file by all we can tell
        assert [(*row[:5], 0) for row in neighbour._state()] == neighbour.before
    else:
        neighbour.assert_untouched()
    assert_kept(home.path, codes)
    if plant is not directory:
        assert (path.lstat().st_ino, path.lstat().st_mode) == (planted.st_ino, planted.st_mode)
    if not part.startswith(("Maildir/deliver", "Maildir/tmp", "Maildir/new", "Maildir/cur")) and part != "Maildir":
        assert set(codes.values()) == {0}


def move_aside(path: Path) -> None:
    """Out of the way, empty as it is."""
    path.rename(path.with_name(f"{path.name}.aside"))


# --- swapped while we deliver ---


class Racer:
    """Swaps a directory with a link to the neighbour's, to and fro, as fast as it can."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path = path
        self._aside = path.with_name(path.name + ".aside")
        self._link = path.with_name(path.name + ".link")
        self._link.symlink_to(target)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.swaps = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._link.unlink()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._path.rename(self._aside)
            except OSError:
                continue  # a delivery has not made it yet
            # A delivery may make the directory meanwhile, which then stays there: the next round moves it.
            try:
                self._link.rename(self._path)
                self._path.rename(self._link)
            except OSError:
                pass
            try:
                self._aside.rename(self._path)
            except OSError:
                self._merge()
            self.swaps += 1

    def _merge(self) -> None:
        """Both are there: the delivery's own goes below ours, where its mail is found again."""
        kept = self._aside / f"made-{self.swaps}"
        self._path.rename(kept)
        self._aside.rename(self._path)


SWAPPED = ("Maildir", "Maildir/tmp", "Maildir/new", "Maildir/.Spam", "Maildir/.Spam/new", "Maildir/deliver", "Maildir/deliver/quarantine")


@pytest.mark.parametrize("part", SWAPPED)
@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.faults)])
def test_a_part_swapped_during_the_delivery(home: main_job.Home, neighbour: Neighbour, part: str, rounds: int) -> None:
    """Every file is reached from an open directory, so a swap changes nothing or fails the delivery."""
    codes = deliver_all(home)
    assert set(codes.values()) == {0}
    neighbour.remember()
    path = home.path / part
    with Racer(path, neighbour.path / part) as racer:
        for number in range(1, rounds + 1):
            codes |= deliver_all(home, number)
    assert racer.swaps > rounds
    neighbour.assert_untouched()
    assert_kept(home.path, codes)


# --- the envelope ---

NASTY = [
    "a\nBcc: x@example.net\n\nbody",
    "a\r\n\r\nbody",
    "$(touch {home}/pwned)@example.org",
    "`touch {home}/pwned`",
    ";touch {home}/pwned;@example.org",
    "|touch {home}/pwned",
    "-oQ{home}/pwned@example.org",
    "--config={home}/pwned@example.org",
    "../../../../../{home}/pwned@example.org",
    "a" * 65536 + "@example.org",
    "\x01\x08\x1b]0;x\x07@example.org",
    "\udc80\udcff@\udcfe",
    "%s%n{{sender}}{{recipient}}{{maildir}}@example.org",
    "a@b@c@" * 100,
    "/",
    "@",
    " ",
]
VARIABLES = "SENDER NEWSENDER RECIPIENT LOCAL HOST EXT EXT2 HOST2 DEFAULT USER DTLINE RPLINE UFLINE LOGNAME SHELL".split()


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
def test_a_hostile_environment_stays_data(home: main_job.Home, neighbour: Neighbour, value: str) -> None:
    """In each variable alone and in all: delivered once, with one header line for each of ours, or tried again."""
    neighbour.remember()
    value = value.format(home=home.path)
    for names in (*([name] for name in VARIABLES), VARIABLES):
        environment = home.environment() | dict.fromkeys(names, value)
        before = set(home.maildir.rglob("*"))
        ended = forked.deliver(environment, home.path, stdin=main_job.message("x"), seconds=LONGEST)
        assert ended.code in forked.CODES, (names, ended)
        assert ended.code == 0, (names, ended)
        assert ended.stderr == b""
        (stored,) = set(home.maildir.rglob("*")) - before - {home.maildir / "quotawarn"} - set(warnings(home))
        top = stored.read_bytes().removesuffix(main_job.message("x"))
        assert [line.partition(b":")[0] for line in top.splitlines()] == [b"Return-Path", b"Delivered-To"]
    assert not (home.path / "pwned").exists()
    assert set(os.listdir(home.path)) == {"Maildir", "site.toml"}
    neighbour.assert_untouched()


def warnings(home: main_job.Home) -> list[Path]:
    """The quota's warnings in the inbox."""
    return [path for path in (home.maildir / "new").iterdir() if main_job.is_warning(path.read_bytes())]


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
def test_a_hostile_sender_stays_data_on_the_way_out(home: main_job.Home, value: str) -> None:
    """The sender goes to the MTA's queue as one word; no shell, no option, no second address."""
    value = value.format(home=home.path)
    record = home.path / "record"
    program = home.path / "sendmail"
    program.write_text(f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >{shlex.quote(str(record))}\ncat >/dev/null\n')
    program.chmod(0o755)
    home.config.write_text('[[rule]]\nforward = "other@example.org"\n')
    main_job.own(home.path)
    environment = {name: text for name, text in home.environment().items() if name not in ("DTLINE", "RPLINE", "UFLINE")}
    environment |= {"SENDER": value, "PATH": str(home.path)}
    ended = forked.deliver(environment, home.path, stdin=main_job.message("x"), seconds=LONGEST)
    assert ended.code in (0, 75)
    if ended.code == 0:
        *_, flag, sender, dashes, address = record.read_bytes().rstrip(b"\0").split(b"\0")
        assert (flag, dashes, address) == (b"-f", b"--", b"other@example.org")
        assert sender == os.fsencode(value)
    else:
        assert not record.exists()
    assert not (home.path / "pwned").exists()


def test_a_users_rules_reach_nothing_but_the_maildir(home: main_job.Home, neighbour: Neighbour) -> None:
    """Names of folders that lead elsewhere are refused with the whole file; the mail arrives."""
    neighbour.remember()
    for name in ("../neighbour/Maildir", "/etc", ".", "..", "../new", "a/../../b", "~root", "\\u0000", "a\\nb", "$HOME", "x" * 300):
        (home.path / "mailfilter.toml").write_text(f'[[rule]]\nfile = "{name}"\n')
        main_job.own(home.path)
        (home.path / "mailfilter.toml").chmod(0o600)
        ended = forked.deliver(home.environment(), home.path, stdin=main_job.message("x"))
        assert ended.code == 0
    assert {path.name for path in home.path.iterdir()} == {"Maildir", "mailfilter.toml", "site.toml"}
    neighbour.assert_untouched()


def test_reading_shows_in_the_canary(neighbour: Neighbour) -> None:
    """Otherwise the tests above prove less than they say; a file system without times of access cannot show it."""
    neighbour.remember()
    (neighbour.path / "secret").read_bytes()
    if (neighbour.path / "secret").stat().st_atime_ns == 10**9:
        pytest.skip("this file system keeps no times of access: only writes are seen")
    with pytest.raises(AssertionError):
        neighbour.assert_untouched()
