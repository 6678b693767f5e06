"""Scanners that are programs: the real clamscan and clamdscan, and scripts that misbehave."""

import asyncio
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import scanner_servers
import servers
from scanned import EICAR, ENVELOPE, HAM, HEADER, content, with_attachment, zipped

from deliver.scanners.command import FILE, OUTPUT_KEPT, PRESETS, Command, names
from deliver.values import Envelope, Finding, Verdict

SLACK = 2.0  # seconds that a busy machine may add to a deadline
INFECTED = HEADER + b"\n" + EICAR + b"\n"
CODES = {0: Finding.CLEAN, 1: Finding.VIRUS, 3: Finding.SKIPPED}
PATTERN = r"(?m)^found (.+)$"

Scan = Callable[..., Verdict]


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """A Maildir, whose tmp/ must be as empty afterwards as before."""
    for name in ("cur", "new", "tmp"):
        (tmp_path / "Maildir" / name).mkdir(parents=True, mode=0o700)
    return tmp_path / "Maildir"


def scan(maildir: Path, command, message: bytes = HAM, timeout: float = 30, codes=CODES, pattern=PATTERN) -> Verdict:
    """One scan, which must end within its timeout and leave nothing behind."""
    scanner = Command("scanner", command, codes, pattern, 10**9, timeout)
    start = time.monotonic()
    verdict = asyncio.run(scanner.scan(content(message), Envelope("a@x", "b@x", str(maildir))))
    assert time.monotonic() - start < timeout + SLACK
    assert os.listdir(maildir / "tmp") == []
    return verdict


def shell(script: str, *arguments: str) -> tuple[str, ...]:
    return ("sh", "-c", script, "sh", *arguments)


# The real ones.


@pytest.mark.parametrize(
    ("message", "finding"),
    [
        pytest.param(HAM, Finding.CLEAN, id="ham"),
        pytest.param(INFECTED, Finding.VIRUS, id="mail"),
        pytest.param(with_attachment(zipped("eicar.com", EICAR), "eicar.zip"), Finding.VIRUS, id="zip"),
    ],
)
def test_clamscan(maildir, tmp_path, message, finding):
    preset = PRESETS["clamscan"]
    database = scanner_servers.clam_database(tmp_path)
    command = (servers.needs("clamscan"), f"--database={database}", *preset.command[1:])
    verdict = scan(maildir, command, message, codes=preset.codes, pattern=preset.pattern)
    found = ("Eicar-Test-Signature.UNOFFICIAL",) if finding is Finding.VIRUS else ()
    assert (verdict.finding, verdict.names) == (finding, found)


def test_clamscan_without_its_database_has_failed(maildir, tmp_path):
    preset = PRESETS["clamscan"]
    command = (servers.needs("clamscan"), f"--database={tmp_path}/none", *preset.command[1:])
    verdict = scan(maildir, command, codes=preset.codes, pattern=preset.pattern)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "scanner reported an error")
    assert "exit code 2" in verdict.detail


def test_clamdscan(maildir, clamd_server, tmp_path):
    """The daemon runs as another user: the file is handed to it open."""
    configuration = tmp_path / "clamd.conf"
    configuration.write_text(f"LocalSocket {clamd_server.address.removeprefix('unix:')}\n")
    preset = PRESETS["clamdscan"]
    command = (servers.needs("clamdscan"), f"--config-file={configuration}", *preset.command[1:])
    settings = {"codes": preset.codes, "pattern": preset.pattern}
    assert scan(maildir, command, INFECTED, **settings).names == ("Eicar-Test-Signature.UNOFFICIAL",)
    assert scan(maildir, command, HAM, **settings).finding is Finding.CLEAN
    configuration.write_text(f"LocalSocket {tmp_path}/none\n")
    assert scan(maildir, command, HAM, **settings).finding is Finding.FAILED


# Those that are not free: what their documents say (see the presets for which).


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clamscan", {0: "clean", 1: "virus", 2: "failed"}),
        ("clamdscan", {0: "clean", 1: "virus", 2: "failed"}),
        (
            "f-prot",
            {0: "clean", 1: "virus", 2: "virus", 3: "virus", 4: "failed", 5: "virus", 8: "skipped", 9: "virus"}
            | {12: "failed", 16: "failed", 17: "virus", 64: "skipped", 65: "virus", 72: "skipped", 128: "failed"},
        ),
        ("uvscan", {0: "clean", 2: "failed", 6: "failed", 8: "failed", 12: "virus", 13: "virus", 15: "failed"}),
        ("uvscan", {10: "failed", 19: "virus", 20: "failed", 21: "failed"}),
        ("savscan", {0: "clean", 1: "failed", 2: "failed", 3: "virus"}),
    ],
)
def test_codes_of_the_presets(name, expected):
    codes = PRESETS[name].codes
    assert {code: codes.get(code, Finding.FAILED).value for code in expected} == expected


@pytest.mark.parametrize(
    ("name", "output", "found"),
    [
        ("clamscan", b"/a b/c.eml: Win.Test.EICAR_HDB-1 FOUND\n", ("Win.Test.EICAR_HDB-1",)),
        ("f-prot", b"[Found virus] <EICAR_Test_File (exact)> \t/tmp/eicar.com\n", ("EICAR_Test_File",)),
        ("uvscan", b"/tmp/a ... Found: EICAR test file NOT a virus.\n", ("EICAR test file NOT a virus.",)),
        ("uvscan", b"/tmp/a\n     Found the W32/Netsky.p@MM!zip virus !!!\n", ("W32/Netsky.p@MM!zip",)),
        ("uvscan", b"/tmp/a ... Found virus or variant New Worm !!!\r\n", ("New Worm",)),
        ("savscan", b">>> Virus 'EICAR-AV-Test' found in file /tmp/a\n", ("EICAR-AV-Test",)),
        ("savscan", b">>> Virus fragment 'W95/CIH-10xx' found in file /tmp/a\n", ("W95/CIH-10xx",)),
        ("savscan", b"no\n", ()),
    ],
)
def test_names_in_the_presets_output(name, output, found):
    assert names(PRESETS[name].pattern, output) == found


# How a program is run.


@pytest.mark.parametrize(
    ("code", "finding", "reason"),
    [
        (0, Finding.CLEAN, ""),
        (1, Finding.VIRUS, ""),
        (2, Finding.FAILED, "scanner reported an error"),
        (3, Finding.SKIPPED, "scanner could not read all of it"),
        (255, Finding.FAILED, "scanner reported an error"),
    ],
)
def test_exit_codes(maildir, code, finding, reason):
    verdict = scan(maildir, shell(f"echo found Evil; exit {code}"))
    assert (verdict.finding, verdict.reason) == (finding, reason)
    assert verdict.names == (("Evil",) if finding is Finding.VIRUS else ())


def test_a_code_without_a_meaning_is_not_clean(maildir):
    assert scan(maildir, ("true",), codes={1: Finding.CLEAN}).finding is Finding.FAILED


@pytest.mark.parametrize("name", ["KILL", "SEGV", "TERM"])
def test_a_program_that_a_signal_ends_has_failed(maildir, name):
    verdict = scan(maildir, shell(f"kill -{name} $$"))
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "scanner ended by a signal")
    assert str(int(getattr(signal, f"SIG{name}"))) in verdict.detail


def test_a_program_that_is_not_there_has_failed(maildir):
    verdict = scan(maildir, ("/nowhere/scanner",))
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "scanner could not be run")
    assert "/" not in verdict.reason


def test_a_maildir_that_is_not_there_is_a_failure(maildir, tmp_path):
    scanner = Command("scanner", ("true",), CODES, "", 10**9, 5)
    verdict = asyncio.run(scanner.scan(content(HAM), ENVELOPE._replace(maildir=str(tmp_path / "none"))))
    assert verdict.finding is Finding.FAILED


def test_the_message_is_a_private_file_in_tmp(maildir):
    """Readable by the owner alone, with the whole message, and a name that ends as messages' do."""
    see = "stat -c '%a %n' $1; cat $1; exit 1"
    verdict = scan(maildir, shell(see, FILE), HAM, pattern="(?s).+")
    line, _, rest = verdict.names[0].partition("?")
    mode, path = line.split(" ")
    assert mode == "600"
    assert Path(path).parent == maildir / "tmp"
    assert path.endswith(".eml")
    assert rest.startswith("Return-Path: <a@example.com>")


def test_without_file_the_message_is_standard_input(maildir):
    message = b"x" * 3_000_000
    verdict = scan(maildir, shell("wc -c; exit 1"), message, pattern="[0-9]+")
    assert verdict.names == ("3000000",)


def test_the_environment_is_clean(maildir, monkeypatch):
    """qmail-local puts what a stranger wrote into it (qmail-command(8))."""
    monkeypatch.setenv("SENDER", "() { evil; }")
    monkeypatch.setenv("LD_PRELOAD", "")
    verdict = scan(maildir, (sys.executable, "-Ic", "import os; print(sorted(os.environ)); exit(1)"), pattern=".+")
    assert set(verdict.names[0].strip("[]").replace("'", "").split(", ")) <= {"PATH", "LC_ALL", "LC_CTYPE"}


def test_nothing_but_its_own_is_open(maildir):
    """No descriptor of ours, nor the mail server's, goes to it: 0, 1, 2 and the one that lists them."""
    with open(os.devnull, "rb") as held:
        os.set_inheritable(held.fileno(), True)
        verdict = scan(maildir, shell("ls /proc/self/fd; exit 1"), pattern="[0-9]+")
    assert verdict.names == ("0", "1", "2", "3")


# Programs that misbehave.


def test_a_program_that_hangs_ends_with_the_deadline_and_all_it_started(maildir, tmp_path):
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 1000 & echo $! $$ > {pids}; wait; sleep 1000"
    verdict = scan(maildir, shell(script), timeout=0.5)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "scanner did not answer in time")
    for pid in map(int, pids.read_text().split()):
        servers.wait_for(lambda pid=pid: gone(pid), 10)


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("start", ["", "setsid "], ids=["in its group", "away"])
def test_a_child_that_holds_the_output_is_not_waited_for(maildir, tmp_path, start):
    pid = tmp_path / "pid"
    script = (
        f"{start}sh -c 'echo $$ > {pid}; exec sleep 1000' & while [ ! -s {pid} ]; do :; done; echo found Evil; exit 1"
    )
    begun = time.monotonic()
    try:
        assert scan(maildir, shell(script)).names == ("Evil",)
        assert time.monotonic() - begun < 5
        if not start:
            servers.wait_for(lambda: gone(int(pid.read_text())), 10)
    finally:
        if not gone(int(pid.read_text())):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_child_that_floods_the_output_is_not_listened_to(maildir, tmp_path):
    pid = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid}; exec yes' & while [ ! -s {pid} ]; do :; done; exit 0"
    try:
        assert scan(maildir, shell(script)).finding is Finding.CLEAN
    finally:
        if not gone(int(pid.read_text())):  # it may have ended with its output
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_flood_of_output_is_read_and_forgotten(maildir):
    """100 MB, as an archive of many members makes some scanners print: the exit code counts all the same."""
    script = "echo found First; yes clean | head -c 100000000; echo found Last; exit 1"
    peak = memory(lambda: scan(maildir, shell(script)))
    assert peak[0].names == ("First",)
    assert peak[1] < 20 * OUTPUT_KEPT


def memory(work: Callable[[], Verdict]) -> tuple[Verdict, int]:
    """What it returns, and the bytes that Python had at most for it."""
    import tracemalloc

    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_endless_flood_ends_with_the_deadline(maildir):
    assert scan(maildir, ("yes",), timeout=0.5).reason == "scanner did not answer in time"


def test_names_are_bounded_and_printable(maildir):
    script = r"printf 'found a\033[1m\303\251\n'; printf 'found %0500d\n' 0; seq -f 'found n%g' 100; exit 1"
    found = scan(maildir, shell(script)).names
    assert found[:2] == ("a?[1m??", "0" * 200)
    assert len(found) == 10


def test_a_virus_without_a_name_is_one(maildir):
    assert scan(maildir, shell("exit 1")).names == ("unnamed",)
    assert scan(maildir, shell("exit 1"), pattern="").names == ("unnamed",)


def test_a_pattern_cannot_take_for_ever(maildir):
    """(a|a)*b over a long run of a: years for an expression that backtracks."""
    script = "head -c 200000 /dev/zero | tr '\\0' a; exit 1"
    assert scan(maildir, shell(script), pattern="(a|a)*b", timeout=10).names == ("unnamed",)


def test_many_at_once(maildir):
    """No descriptor is left open, no thread, no file."""
    before = len(os.listdir("/proc/self/fd"))
    scanner = Command("scanner", shell("cat; exit 1"), CODES, "", 10**9, 30)

    async def all_of_them() -> list[Verdict]:
        return await asyncio.gather(
            *(scanner.scan(content(HAM), Envelope("a@x", "b@x", str(maildir))) for _ in range(20))
        )

    assert {verdict.finding for verdict in asyncio.run(all_of_them())} == {Finding.VIRUS}
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == 1
    assert os.listdir(maildir / "tmp") == []


def test_the_mode_does_not_depend_on_the_umask(maildir):
    old = os.umask(0)
    try:
        verdict = scan(maildir, shell("stat -c %a $1; exit 1", FILE), pattern="[0-7]+")
    finally:
        os.umask(old)
    assert int(verdict.names[0], 8) == stat.S_IRUSR | stat.S_IWUSR
