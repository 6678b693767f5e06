"""Many deliveries at once, killed at random and tried again, as an MTA does; and what a day of failures leaves behind."""

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imap
import main_job
import pytest
import report
import servers
from fault_cases import SCENARIOS, TOP, Place, Scenario
from installed import install_once  # noqa: F401 - the fixture `installed`
from test_faults_sweep import SEED

pytestmark = pytest.mark.faults

DELIVERIES = 500
AT_ONCE = 16
TRIES = 20
BODY = b"".join(b"%05d some words of a message that is a bit longer than a disk's block\n" % n for n in range(400))
STORM = Scenario("storm", "[quota]\nlimit = '900 MB'\n", b"", {"INBOX": b""})


def _message(number: int) -> bytes:
    return main_job.message(f"storm {number}", BODY)


def _try(place: Place, number: int, kill_after: float | None) -> int:
    """One delivery; killed after so many seconds, with the launcher or without it. 75 where the MTA sees a signal."""
    path = place.path / f"queue-{number}"
    path.write_bytes(_message(number))
    settings: dict[str, Any] = {**place.settings(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with path.open("rb") as stdin, subprocess.Popen(
        place.command, stdin=stdin, start_new_session=True, **settings
    ) as process:
        try:
            code = process.wait(kill_after if kill_after is not None else 120)
        except subprocess.TimeoutExpired:
            if number % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                _kill_child(process.pid)
            code = process.wait(120)
    path.unlink()
    return 75 if code < 0 else code


def _kill_child(pid: int) -> None:
    """Kill Python alone: the launcher must then say 75. proc(5)."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def test_a_storm_of_deliveries_and_kills(scratch: Path, installed: Path) -> None:
    """Every message arrives, whole; twice only where a try was killed. Dovecot reads, and moves mail to cur, meanwhile."""
    begun = time.monotonic()
    place = Place(scratch / "home", installed, STORM)
    tries: Counter[int] = Counter()
    over = threading.Event()
    readings: list[int] = []

    def read() -> None:
        with imap.dovecot(place.path) as session:
            while not over.is_set():
                readings.append(len(session.messages()))

    def until_accepted(number: int) -> list[int]:
        draw = random.Random(f"{SEED} {number}")
        codes: list[int] = []
        while len(codes) < TRIES:
            kill_after = draw.uniform(0, 1.5) if draw.random() < 0.5 else None
            codes.append(_try(place, number, kill_after))
            tries[number] += 1
            if codes[-1] == 0:
                break
        return codes

    with ThreadPoolExecutor(AT_ONCE + 1) as pool:
        reader = pool.submit(read)
        results = list(pool.map(until_accepted, range(DELIVERIES)))
        over.set()
        reader.result()
    assert all(codes[-1] == 0 and set(codes[:-1]) <= {75} for codes in results)
    stored = Counter(place.messages())
    wrong = [number for number in range(DELIVERIES) if not 1 <= stored.pop(TOP + _message(number), 0) <= tries[number]]
    assert wrong == [], "missing, or there more often than it was tried"
    assert not stored, f"{len(stored)} messages that nobody sent"
    with imap.dovecot(place.path) as session:
        shown = Counter(one.content.replace(b"\r\n", b"\n") for one in session.messages())
    assert shown == Counter(place.messages())
    copies = sum(shown.values())
    report.say(
        f"storm: {DELIVERIES} messages, {AT_ONCE} at a time, {sum(tries.values())} tries, of which "
        f"{sum(tries.values()) - DELIVERIES} were killed or put off; {DELIVERIES} there, whole; {copies - DELIVERIES} twice; "
        f"{len(readings)} readings by Dovecot meanwhile; {time.monotonic() - begun:.0f} s"
    )


def test_a_day_of_failures_leaves_nothing_in_tmp(scratch: Path, installed: Path) -> None:
    """A disk that refuses large files: an MTA that tries every few minutes must not fill it with fragments."""
    tried = 0
    for scenario in SCENARIOS:
        if scenario.name not in {"from a pipe", "new folder", "quota", "copy and file"}:
            continue
        place = Place(scratch / "home", installed, scenario)
        for size in range(0, 300_000, 25_000):
            with place.input() as stdin:
                settings: dict[str, Any] = {**place.settings(), "stdin": stdin, "stdout": subprocess.DEVNULL}
                command = [servers.needs("prlimit"), f"--fsize={size}", *place.command]
                assert subprocess.run(command, check=False, timeout=60, **settings).returncode == 75
            tried += 1
        assert place.left_over() == []
        assert place.copies() == {}
    report.say(f"clean failures: {tried} tries put off, nothing left in tmp/")
