"""Deliveries in a forked copy of the tests' own process: everything but the interpreter's start is as installed.

Hundreds of hostile inputs can be played so in the time of a few starts. The child is the unprivileged user, has the
environment it is given and no descriptors but 0, 1 and 2; it runs ``main()`` and ends as that ends.
"""

import contextlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pytest
import servers

# What a delivery imports late: an unprivileged child might not be able to read it where the checkout is private.
import deliver.__main__ as door
import deliver.commands
import deliver.forward
import deliver.header_lines
import deliver.log
import deliver.mailbox
import deliver.scanners.clamd
import deliver.scanners.clamd_socket
import deliver.scanners.spamd
import deliver.scanners.spamd_connection
import deliver.scanners.trusted
import deliver.wiring
import quarantine.files  # noqa: F401

CODES = {0, 75, 99, 100}
LONGEST = 30.0
"""Seconds until a delivery that has not ended counts as hanging."""


class Ended(NamedTuple):
    """How a delivery ended: ``code`` is negative for a signal; ``seconds`` wall time; ``grown`` bytes of memory."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float
    grown: int


def nothing() -> None:
    """No preparation."""


def deliver(
    environment: Mapping[str, str],
    cwd: Path,
    *arguments: str,
    stdin: bytes | int | None = b"",
    prepare: Callable[[], object] = nothing,
    meanwhile: Callable[[int], object] | None = None,
    stdout: int | None = None,
    seconds: float = LONGEST,
) -> Ended:
    """Deliver ``stdin``: bytes (as a file), a descriptor, or None for a closed one.

    ``prepare`` runs in the child just before, ``meanwhile`` in the parent just after it has started, with its pid.
    ``stdout`` replaces the file that catches the answer. Fails the test where the child takes longer than ``seconds``.
    """
    with contextlib.ExitStack() as stack:
        output, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        if isinstance(stdin, bytes):
            queued = stack.enter_context(tempfile.TemporaryFile())
            queued.write(stdin)
            queued.seek(0)
            source: int | None = queued.fileno()
        else:
            source = stdin
        before = _resident()
        begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scripted servers' threads, from Python 3.12 on; the child uses none
            pid = os.fork()
        if not pid:
            descriptors = (source, output.fileno() if stdout is None else stdout, errors.fileno())
            _child(descriptors, environment, cwd, arguments, prepare)
        if meanwhile:
            meanwhile(pid)
        code, usage = _wait(pid, begun + seconds)
        grown = max(0, usage.ru_maxrss * 1024 - before)
        return Ended(code, _all(output), _all(errors), time.monotonic() - begun, grown)


def _child(
    descriptors: tuple[int | None, int, int],
    environment: Mapping[str, str],
    cwd: Path,
    arguments: Sequence[str],
    prepare: Callable[[], object],
) -> None:
    try:
        os.setsid()
        copies = [None if fd is None else os.dup(fd) for fd in descriptors]
        for fd, copy in enumerate(copies):
            if copy is None:
                os.close(fd)
            else:
                os.dup2(copy, fd)
        os.closerange(3, 4096)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(cwd)
        if user := servers.unprivileged():
            os.setgroups([])
            os.setgid(user["group"])
            os.setuid(user["user"])
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["deliver", *arguments]
        prepare()
        door.main()
    except BaseException as error:
        os.write(2, f"main() let {error!r} through".encode())
    finally:
        os._exit(70)  # no code of ours: whoever sees it knows that main() did not end as it must


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    watched = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([watched], [], [], max(0, deadline - time.monotonic()))
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(watched)
    if not ended:
        pytest.fail("the delivery hangs")
    return os.waitstatus_to_exitcode(status), usage


def _all(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _resident() -> int:
    """Bytes that this process has in memory: a forked child starts with as many (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
