"""Every system call of a delivery fails once, and again and again; and the process is killed at each of them.

Whatever happens, exit 0 means one intact copy where it belongs; anything else is 75, with one intact copy at most.
`make sweep` tries all faults; `make test-faults` a sample of them, drawn anew with DELIVER_FAULTS_SEED.
"""

import contextlib
import os
import queue
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fault_cases
import pytest
import report
import servers
import strace
from fault_cases import HEADER, LINES, SCENARIOS, TOP, Place, Scanners, Scenario
from installed import install_once  # noqa: F401 - the fixture `installed`
from main_job import Home

pytestmark = pytest.mark.faults

FULL = os.environ.get("DELIVER_FULL_SWEEP") == "1"
SEED = int(os.environ.get("DELIVER_FAULTS_SEED", "1"))
SAMPLE = 40
"""Faults of a scenario that `make test-faults` tries at decisive calls, and as many at the others."""

# What each call can end with, of the errors that disks, NFS, quotas and limits give (the man pages, section ERRORS;
# ESTALE and EDQUOT: NFS). close is never repeated, so its errors only tell.
FILE = ["EIO", "ESTALE"]
GROWING = [*FILE, "ENOSPC", "EDQUOT"]
ERRORS = {
    "openat": [*GROWING, "EMFILE", "EINTR"],
    "read": [*FILE, "EINTR"],
    "pread64": [*FILE, "EINTR"],
    "write": [*GROWING, "EINTR"],
    "pwrite64": [*GROWING, "EINTR"],
    "close": ["EIO", "ENOSPC", "EDQUOT", "EINTR"],
    "fsync": [*GROWING, "EINTR"],
    "ftruncate": [*GROWING, "EINTR"],
    "fchmod": FILE,
    "fchown": [*FILE, "EDQUOT"],
    "utimensat": FILE,
    "mkdirat": GROWING,
    "mkdir": GROWING,
    "linkat": GROWING,
    "rename": GROWING,
    "renameat": GROWING,
    "renameat2": GROWING,
    "unlinkat": FILE,
    "unlink": FILE,
    "newfstatat": FILE,
    "fstat": FILE,
    "stat": FILE,
    "lstat": FILE,
    "statx": FILE,
    "faccessat2": FILE,
    "access": FILE,
    "readlink": FILE,
    "readlinkat": FILE,
    "getdents64": FILE,
    "getcwd": ["EIO"],
    "lseek": ["EIO"],
    "flock": ["EIO", "EINTR", "ENOLCK"],
    "fcntl": ["EMFILE"],
    "dup": ["EMFILE"],
    "dup2": ["EMFILE", "EINTR"],
    "dup3": ["EMFILE", "EINTR"],
    "pipe2": ["EMFILE"],
    "socket": ["EMFILE"],
    "socketpair": ["EMFILE"],
    "connect": ["EINTR", "EIO"],
    "sendto": ["EINTR", "EPIPE"],
    "sendmsg": ["EINTR", "EPIPE"],
    "recvfrom": ["EINTR", "ECONNRESET"],
    "recvmsg": ["EINTR", "ECONNRESET"],
    "clone": ["EAGAIN"],
    "clone3": ["EAGAIN"],
    "vfork": ["EAGAIN"],
    "execve": ["EIO", "EMFILE"],
    "wait4": ["EINTR"],
    "copy_file_range": [*GROWING, "EINTR"],
}
# What is no file on a disk has none of a disk's errors: pipe(7), unix(7).
NO_DISK = re.compile(r"[0-9]+<(?:pipe|socket|anon_inode):")
# Memory, time, waiting and identity: their failure is no disk's, or cannot be made (see test_faults_memory.py).
LEFT_OUT = re.compile(
    r"futex|epoll_.*|clock_.*|gettimeofday|time|poll|ppoll|select|pselect6|mmap|munmap|mprotect|mremap|madvise|brk"
    r"|get.?.?id|getrandom|rt_.*|sigaltstack|arch_prctl|set_.*|rseq|prlimit64|sched_.*|uname|exit|exit_group"
    r"|restart_syscall|gettid|setitimer|alarm|sysinfo|getsid|getpgrp|umask"
)
# Where the outcome is decided: half of every sample is of these.
DECISIVE = {"fsync", "linkat", "rename", "renameat", "mkdirat", "unlinkat", "write", "pwrite64"}


def faults_of(call: strace.Call) -> Iterator[strace.Fault]:
    """Everything that this call is to do."""
    errors = ERRORS.get(call.name, [])
    if NO_DISK.match(call.words):
        errors = [error for error in [*errors, *["EPIPE"] * (call.name == "write")] if error not in GROWING]
    if call.name == "openat" and "O_CREAT" not in call.words and "O_TMPFILE" not in call.words:
        errors = [error for error in errors if error not in {"ENOSPC", "EDQUOT"}]
    for error in errors:
        yield strace.Fault(call, error)
        if error != "EINTR":  # for ever, it is not an interruption
            yield strace.Fault(call, error, forever=True)
    yield strace.Fault(call, "SIGKILL")


def drawn(faults: list[strace.Fault], scenario: Scenario) -> list[strace.Fault]:
    """The sample: SAMPLE of the decisive faults, and as many of the others."""
    draw = random.Random(f"{SEED} {scenario.name}")
    decisive = [fault for fault in faults if fault.call.name in DECISIVE]
    others = [fault for fault in faults if fault.call.name not in DECISIVE]
    return draw.sample(decisive, min(SAMPLE, len(decisive))) + draw.sample(others, min(SAMPLE, len(others)))


@pytest.fixture(scope="module")
def scanning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanners]:
    strace.needed()
    with servers.scratch() as directory, fault_cases.scanners(directory) as found:
        yield found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_no_fault_loses_or_breaks_a_message(
    scratch: Path, installed: Path, scanning: Scanners, scenario: Scenario
) -> None:
    begun = time.monotonic()
    place = Place(scratch / "0", installed, scenario, scanning, deadline="60 s")
    # From the first look at the message or the Maildir on.
    first = re.compile(rf'"{re.escape(str(place.maildir))}"|^(?:read|pread64)\(0[<,]')
    calls, hidden = _baseline(place, scratch / "trace", first)
    used = [call for call in calls if not LEFT_OUT.fullmatch(call.name)]
    unknown = {call.name for call in used} - ERRORS.keys() - {"ioctl", "getsockname", "getsockopt", "setsockopt", "bind", "setsid", "shutdown", "getpeername", "close_range", "fadvise64", "statfs"}
    faults = [fault for call in used for fault in faults_of(call)]
    chosen = faults if FULL else drawn(faults, scenario)

    spare: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(fault_cases.workers()):
        spare.put(number)

    def attempt(fault: strace.Fault) -> tuple[strace.Fault, int, int, list[str]]:
        number = spare.get()
        try:
            place = Place(scratch / str(number), installed, scenario, scanning)
            with place.input() as stdin:
                done = strace.inject(fault, place.command, scratch / f"trace{number}", stdin=stdin, **place.settings())
            killed = fault.what == "SIGKILL"
            return fault, done.code, done.hits, place.complaints(done.code, killed=killed, dirty=_may_stay(fault))
        finally:
            spare.put(number)

    with ThreadPoolExecutor(fault_cases.workers()) as pool:
        results = list(pool.map(attempt, chosen))
    codes = [code for _, code, hits, _ in results if hits]
    missed = sum(not hits for _, _, hits, _ in results)
    report.say(
        f"sweep, {scenario.name}: {len(calls)} calls, {len(faults)} faults, {len(results)} tried, {missed} not met; "
        f"exit 0: {codes.count(0)}, 75: {codes.count(75)}, other: {len(codes) - codes.count(0) - codes.count(75)}; "
        f"{hidden} calls in threads left out; {time.monotonic() - begun:.0f} s"
    )
    wrong = {str(fault): complaints for fault, _, _, complaints in results if complaints}
    assert not wrong, fault_cases.described(wrong)
    assert not unknown, f"calls without a list of errors: {unknown}"
    unmet = [str(fault) for fault, _, hits, _ in results if not hits]
    assert missed <= len(results) // 4, f"the calls are not the same in every run: {unmet}"


SHORT = HEADER + b"\n" + LINES[: 76 * 26]  # whole lines; maildrop feeds its filters a line at a time
PLAIN = 'to "./Maildir/"\n'
# What Mail::Toaster's filter does with mail for the inbox (Mail-Toaster 5.54, Setup/Maildrop.pm): deliverquota's 77 is
# given back, everything else it may say is taken for success.
TOASTERS = """\
SHELL="/bin/sh"
exception {
    xfilter "deliverquota.courier -w 90 ./Maildir"
}
if ($RETURNCODE == 77)
{
    EXITCODE=100
    exit
}
EXITCODE=0
exit
"""


HUNG = -1000  # no exit code, and no signal's
PATIENCE = 20.0
"""Seconds after which a program counts as hung: with one message on a disk it takes milliseconds."""


class Program(NamedTuple):
    """One of those who are asked the same: its filter, and what it stores of SHORT."""

    name: str
    filter: str
    stored: bytes


PROGRAMS = [
    Program("deliver", "", TOP + SHORT),
    Program("maildrop", PLAIN, SHORT),
    Program("maildrop, Mail::Toaster's filter", TOASTERS, SHORT),
]


class Judged(NamedTuple):
    """What came of one fault."""

    code: int
    hit: bool
    lost: bool
    broken: bool
    left_over: bool


def test_the_others_under_the_same_faults(scratch: Path, installed: Path, scanning: Scanners) -> None:
    """The programs that we replace lose mail at exit 0; if they no longer do, docs/reliability.md has to say so."""
    maildrop = servers.needs("maildrop")
    servers.needs("deliverquota.courier")
    rows = []
    lost = {}
    for program in PROGRAMS:

        def write(home: Home, text: str = program.filter) -> None:
            (home.path / "filter").write_text(text)
            (home.path / "filter").chmod(0o600)

        scenario = Scenario("plain", "", SHORT, {"INBOX": program.stored}, prepare=write)
        command = [maildrop, "filter"] if program.filter else []

        def place_in(directory: Path, scenario: Scenario = scenario, command: list[str] = command) -> Place:
            place = Place(directory, installed, scenario, scanning)
            place.command = command or place.command
            return place

        place = place_in(scratch / "0")
        first = re.compile(rf'"(?:{re.escape(str(place.maildir))}|\./Maildir)[/"]|^(?:read|pread64)\(0[<,]')
        calls, _ = _baseline(place, scratch / "trace", first)
        faults = [fault for call in calls if not LEFT_OUT.fullmatch(call.name) for fault in faults_of(call)]
        chosen = faults if FULL else drawn(faults, scenario)

        def judge(number: int, place_in: Callable[[Path], Place] = place_in, chosen: list[strace.Fault] = chosen) -> Judged:
            place = place_in(scratch / str(number))
            fault = chosen[number]
            done = strace.Done(HUNG, b"", 1)
            with place.input() as stdin, contextlib.suppress(subprocess.TimeoutExpired):
                log = scratch / f"trace{number}"
                done = strace.inject(fault, place.command, log, patience=PATIENCE, stdin=stdin, **place.settings())
            inbox = place.copies().get("INBOX", [])
            expected = place.scenario.stored["INBOX"]
            left = fault.what != "SIGKILL" and fault.call.name not in {"unlink", "unlinkat"} and bool(place.left_over())
            shutil.rmtree(place.path, ignore_errors=True)  # one that hung may have left somebody writing there
            return Judged(
                done.code, bool(done.hits), done.code == 0 and expected not in inbox, any(one != expected for one in inbox), left
            )

        with ThreadPoolExecutor(fault_cases.workers()) as pool:
            judged = [one for one in pool.map(judge, range(len(chosen))) if one.hit]
        codes = [one.code for one in judged]
        counts = [codes.count(0), codes.count(75), sum(code not in (0, 75, HUNG) for code in codes), codes.count(HUNG)]
        figures = [len(calls), len(faults), len(judged), *counts]
        sums = [sum(one.lost for one in judged), sum(one.broken for one in judged), sum(one.left_over for one in judged)]
        rows.append([program.name, *map(str, figures + sums)])
        lost[program.name] = sums
    head = ["program", "calls", "faults", "tried", "exit 0", "75", "other", "hung", "lost at 0", "broken", "left over"]
    report.table("the same faults, one plain message for the inbox", head, rows)
    assert lost["deliver"] == [0, 0, 0]
    assert lost["maildrop, Mail::Toaster's filter"][0] > 0, "it has become better"


def _may_stay(fault: strace.Fault) -> tuple[str, ...]:
    """What nobody could have removed: where removing fails, all; where stat fails for ever, a lock that may not be ours
    any more (Dovecot removes what it takes for abandoned, and so do we not).
    """
    if fault.call.name in {"unlinkat", "unlink"}:
        return ("",)
    return ("subscriptions.lock",) if fault.call.name == "newfstatat" and fault.forever else ()


def _baseline(place: Place, log: Path, first: re.Pattern[str]) -> tuple[list[strace.Call], int]:
    with place.input() as stdin:
        calls, hidden = strace.baseline(
            place.command, log, first, code=place.scenario.code, stdin=stdin, **place.settings()
        )
    assert place.complaints(place.scenario.code) == []
    return calls, hidden
