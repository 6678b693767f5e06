"""What runs under strace(1) ends with the test that started it."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import strace

SPIN = "import os, sys; os.setpgid(0, 0); open(sys.argv[1], 'w').write(str(os.getpid())); os.close(1)\nwhile True: pass"


def test_one_that_hangs_is_ended_although_it_leads_a_group_of_its_own(scratch: Path) -> None:
    """As maildrop does."""
    strace.needed()
    number = scratch / "pid"
    fault = strace.Fault(strace.Call("uname", 999, ""), "EIO")
    with pytest.raises(subprocess.TimeoutExpired):
        strace.inject(fault, [sys.executable, "-I", "-S", "-c", SPIN, str(number)], scratch / "log", patience=3)
    pid = int(number.read_text())
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(pid)
        ended, _, _ = select.select([watched], [], [], 10)
        os.close(watched)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        assert ended
