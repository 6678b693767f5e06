"""The log: one JSON object a line, one line per recipient."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

Log = Callable[..., None]

_SYSLOG_LINE = 7000
"""Bytes. rsyslog and journald cut lines at 8 KiB."""


def to(where: str) -> Log:
    """A function that logs its keyword arguments to "syslog", "stderr" or a file. It never raises.

    What a file cannot take goes to syslog: whoever logged first may have made it for one user alone. JSON keeps every
    line on one line and every byte printable, whatever stands in a Subject.
    """
    if where == "syslog":
        return _syslog

    def write(**record: Any) -> None:
        line = _line(record) + "\n"
        if where == "stderr":
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
            return
        if not append(where, line.encode()):
            _syslog(**record)

    return write


def append(path: str, line: bytes) -> bool:
    """Add a line to a file, in one write, so that two of them never mix; whether that could be. Never raises."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _syslog(**record: Any) -> None:
    import syslog  # late: not every site logs there

    priority = syslog.LOG_WARNING if record.get("level") == "warning" else syslog.LOG_INFO
    syslog.openlog("deliver", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(priority, _line(record)[:_SYSLOG_LINE])


def _line(record: dict[str, Any]) -> str:
    return json.dumps({"time": round(time.time(), 3), **record}, default=str)
