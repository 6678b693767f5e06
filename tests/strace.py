"""Failing system calls, one at a time: strace(1) finds them, counts them and makes them fail.

A run without faults gives the list of calls. ``when=N`` counts the calls of one name in one thread, so a call is told
to strace by its name and the number of calls of that name before it in its thread.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import servers

_ENTERED = re.compile(r"([0-9]+) +([a-z_0-9]+)\((.*)")
_TIMEOUT = 120.0  # seconds


class Call(NamedTuple):
    """The ``number``-th call (from 1) of ``name`` in its thread.

    ``words`` are its arguments as ``strace -y`` shows them: behind a descriptor stands what it is.
    """

    name: str
    number: int
    words: str


class Fault(NamedTuple):
    """What happens instead of a call: ``what`` is an error's name or "SIGKILL"; ``forever`` also to all later ones."""

    call: Call
    what: str
    forever: bool = False

    def __str__(self) -> str:
        """``fsync 2+ EIO (13)``."""
        return f"{self.call.name} {self.call.number}{'+' * self.forever} {self.what} ({self.call.words[:100]})"

    @property
    def options(self) -> list[str]:
        """As strace(1) wants it."""
        how = f"signal={self.what}" if self.what.startswith("SIG") else f"error={self.what}"
        when = f"{self.call.number}{'+' * self.forever}"
        return ["-e", f"trace={self.call.name}", "-e", f"inject={self.call.name}:{how}:when={when}"]


class Done(NamedTuple):
    """An exit code (negative for a signal), standard output, and how often strace says that it did something."""

    code: int
    output: bytes
    hits: int


def needed() -> str:
    """The path of strace; skips the test where this kernel or container lets no process trace another."""
    program = servers.needs("strace")
    if not _may_trace(program):
        pytest.skip("this system lets no process trace another (ptrace)")
    return program


@functools.cache
def _may_trace(program: str) -> bool:
    command = [program, "-qq", "-f", "-o", "/dev/null", "true"]
    return subprocess.run(command, capture_output=True, check=False, **servers.unprivileged()).returncode == 0


def baseline(
    command: Sequence[str], log: Path, first: re.Pattern[str], *, code: int = 0, **settings: Any
) -> tuple[list[Call], int]:
    """Run ``command`` without a fault, to exit ``code``: its calls from the first that ``first`` matches, each once.

    Also the number of calls in threads that cannot be told apart from one before it: the main thread has done as many
    of that name while it started.
    """
    done = _strace(["-f", "-y"], command, log, **settings)
    assert done.returncode == code, done.stdout + done.stderr
    counts: dict[tuple[str, str], int] = {}
    early: set[tuple[str, int]] = set()
    calls: dict[tuple[str, int], Call] = {}
    hidden = 0
    begun = False
    for line in log.read_text(errors="replace").splitlines():
        entered = _ENTERED.match(line)
        if not entered:
            continue
        thread, name, words = entered.groups()
        number = counts[thread, name] = counts.get((thread, name), 0) + 1
        begun = begun or first.search(f"{name}({words}") is not None
        if not begun:
            early.add((name, number))
        elif (name, number) in early:
            hidden += 1
        else:
            calls.setdefault((name, number), Call(name, number, words))
    assert begun, f"{first.pattern} is in no call"
    return list(calls.values()), hidden


def inject(fault: Fault, command: Sequence[str], log: Path, *, patience: float = _TIMEOUT, **settings: Any) -> Done:
    """Run ``command`` with a fault; raises subprocess.TimeoutExpired after ``patience`` seconds."""
    log.unlink(missing_ok=True)
    # Stopping at nothing but this call makes a run twice as fast; strace 6.1 then forgets the signals, though.
    fast = [] if fault.what.startswith("SIG") else ["--seccomp-bpf"]
    done = _strace(["-f", *fast, *fault.options], command, log, patience, **settings)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    hits = sum("(INJECTED)" in line or "killed by SIGKILL" in line for line in lines)
    return Done(done.returncode, done.stdout, hits)


def _end_session(leader: int) -> None:
    """Kill all processes of a session: not a process group, of which maildrop makes one of its own (setpgrp(2))."""
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def _strace(
    options: Sequence[str], command: Sequence[str], log: Path, patience: float = _TIMEOUT, **settings: Any
) -> "subprocess.CompletedProcess[bytes]":
    words = ["strace", "-q", "-s", "64", *options, "-o", str(log), *command]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, **settings}
    with subprocess.Popen(words, **settings) as process:
        try:
            output, errors = process.communicate(timeout=patience)
        except BaseException:
            _end_session(process.pid)  # strace's end alone would let the others go on
            raise
        return subprocess.CompletedProcess(words, process.returncode, output, errors)
