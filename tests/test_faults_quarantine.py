"""Killed at any system call, put, release, delete and expire lose nothing, and `quarantine verify --repair` mends it."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fault_cases
import main_job
import pytest
import report
import servers
import strace
from test_faults_sweep import DECISIVE, LEFT_OUT
from test_quarantine import BODY, DAY, held

from quarantine.files import Files

pytestmark = pytest.mark.faults

FULL = os.environ.get("DELIVER_FULL_SWEEP") == "1"
SEED = int(os.environ.get("DELIVER_FAULTS_SEED", "1"))
SAMPLE = 12
"""Calls of a command at which `make test-faults` kills, of those that decide and of the others; `make sweep`: all."""

PUT = """
import os, sys
from quarantine.files import Files
from quarantine.store import Held
base, maildir = sys.argv[1:]
one = Held("you@example.org", "a@b", "new", "for the test", 2e9, maildir, "INBOX", "")
Files(base, "quarantine").prepare(one, [b"From: a@b\\n\\nnew\\n"]).commit()
"""
# What was interrupted is mended at once, not after the minutes and days in which somebody might still be at work.
MEND = """
import sys
from quarantine import commands, release
release.INTERRUPTED = commands.QUEUE_LIFETIME = 0
commands.cli()
"""


class Work(NamedTuple):
    """What is killed: the arguments of `quarantine`; "put" is what a delivery does."""

    name: str
    arguments: tuple[str, ...] = ()


WORKS = [Work("put"), Work("release", ("ID",)), Work("delete", ("ID",)), Work("expire")]


class Place:
    """A quarantine with two messages, one of which has been held for too long, and the mailbox they were for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.maildir = directory / "Maildir"
        for part in ("tmp", "new", "cur"):
            (self.maildir / part).mkdir(parents=True)
        self.archive = Files(str(directory), "quarantine")
        self.old = self._put(b"old\n", time.time() - 31 * DAY)
        self.fresh = self._put(b"fresh\n", time.time())
        self.run("list")  # makes the index, as any earlier command has
        main_job.own(directory)

    def _put(self, end: bytes, when: float) -> str:
        return self.archive.prepare(held(self.maildir, time=when), [BODY + end]).commit().id

    def command(self, work: Work) -> list[str]:
        if work.name == "put":
            return [sys.executable, "-I", "-c", PUT, str(self.path), str(self.maildir)]
        given = [self.old if one == "ID" else one for one in work.arguments]
        return [sys.executable, "-I", "-m", "quarantine", "--directory", self.archive.path, work.name, *given]

    def run(self, *arguments: str, script: str = "") -> "subprocess.CompletedProcess[str]":
        start = ["-c", script] if script else ["-m", "quarantine"]
        command = [sys.executable, "-I", *start, "--directory", self.archive.path, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, **self.settings())

    def settings(self) -> dict[str, Any]:
        return {"cwd": self.path, "env": {"PATH": "/usr/bin:/bin"}, **servers.unprivileged()}

    def complaints(self, work: Work) -> Iterator[str]:
        """What is lost, half done or not mended."""
        mended = self.run("verify", "--repair", script=MEND)
        found = self.run("verify")
        if found.returncode or mended.returncode:
            yield f"not mended: {mended.stdout}{mended.stderr}{found.stdout}{found.stderr}"
        listed = {json.loads(line)["id"] for line in self.run("list", "--json").stdout.splitlines()}
        if listed != set(self.archive.ids()):
            yield f"the list has {listed}, held are {self.archive.ids()}"
        if self._whole(self.fresh) != BODY + b"fresh\n":
            yield "the other message is not whole"
        delivered = [path.read_bytes() for part in ("new", "cur") for path in (self.maildir / part).iterdir()]
        kept = self._whole(self.old)
        if any(not one.endswith(b"\nbody\nold\n") for one in delivered) or len(delivered) > 1:
            yield f"delivered: {delivered}"
        if kept not in (None, BODY + b"old\n"):
            yield f"held: {kept!r}"
        if kept is None and not delivered and work.name in {"put", "release"}:
            yield "the message is lost"

    def _whole(self, id_: str) -> bytes | None:
        try:
            return b"".join(self.archive.chunks(self.archive.read(id_)))
        except KeyError:
            return None


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_kill_anywhere_loses_nothing_and_is_mended(scratch: Path, work: Work) -> None:
    strace.needed()
    begun = time.monotonic()
    place = Place(scratch / "0")
    first = re.compile(r'"(?:held|messages|tmp)"')  # from its first look into the quarantine on
    calls, hidden = strace.baseline(place.command(work), scratch / "trace", first, **place.settings())
    assert list(place.complaints(work)) == []
    used = [call for call in calls if not LEFT_OUT.fullmatch(call.name)]
    draw = random.Random(f"{SEED} quarantine {work.name}")
    decisive = [call for call in used if call.name in DECISIVE]
    others = [call for call in used if call.name not in DECISIVE]
    chosen = used if FULL else [*draw.sample(decisive, min(SAMPLE, len(decisive))), *draw.sample(others, min(SAMPLE, len(others)))]

    def attempt(number: int) -> tuple[str, int, list[str]]:
        fault = strace.Fault(chosen[number], "SIGKILL")
        place = Place(scratch / str(number + 1))
        done = strace.inject(fault, place.command(work), scratch / f"trace{number}", **place.settings())
        return str(fault), done.hits, list(place.complaints(work))

    with ThreadPoolExecutor(fault_cases.workers()) as pool:
        results = list(pool.map(attempt, range(len(chosen))))
    missed = sum(not hits for _, hits, _ in results)
    report.say(
        f"quarantine {work.name}: {len(calls)} calls, killed at {len(results)}, {missed} not met; "
        f"{hidden} calls in threads left out; {time.monotonic() - begun:.0f} s"
    )
    wrong = {fault: complaints for fault, _, complaints in results if complaints}
    assert not wrong, fault_cases.described(wrong)
    assert missed <= len(results) // 4
