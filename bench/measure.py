"""Clocks, medians and tables."""

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Seconds: on the clock, of CPU of all of a side's processes, and of these the ones run for this message."""

    wall: float
    cpu: float
    commands: float


class Spread(NamedTuple):
    """A median with the least and the greatest of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)}..{short(self.high)})"


def spread(values: Iterable[float]) -> Spread:
    """The median of at least one value, and its bounds."""
    ordered = sorted(values)
    return Spread(statistics.median(ordered), ordered[0], ordered[-1])


def short(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Resident:
    """The processes of a side that stay: one, or with ``children`` one and all that it has started."""

    _TICK = 1 / os.sysconf("SC_CLK_TCK")

    def __init__(self, pid: int, *, children: bool = False) -> None:
        self.pid = pid
        self._children = children

    def pids(self) -> list[int]:
        """All of them, now."""
        return [self.pid, *(_children(self.pid) if self._children else [])]

    def cpu(self) -> float:
        """Seconds of CPU used so far by all threads, dead ones included; of processes that have ended, in ticks."""
        used = 0.0
        for pid in self.pids():
            with suppress(OSError):  # it has just ended
                # The kernel's number for a process's clock, in ns: clock_getcpuclockid(3), MAKE_PROCESS_CPUCLOCK.
                used += time.clock_gettime((~pid << 3) | 2)
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return used + (int(fields[13]) + int(fields[14])) * self._TICK  # cutime, cstime: proc(5)

    def memory(self) -> float:
        """Resident memory now, in MB (10**6 bytes)."""
        return self._status("VmRSS")

    def most_memory(self) -> float:
        """The most resident memory since ``forget_most``, in MB."""
        return self._status("VmHWM")

    def forget_most(self) -> None:
        """Start the maximum anew: proc(5), clear_refs."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, field: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise RuntimeError(f"/proc/{self.pid}/status has no {field}")


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    found.append(int(entry.name))
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns side by side: the first to the left, all others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for first, *others in cells:
        parts = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(parts).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
