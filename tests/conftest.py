"""Fixtures that several tests use."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import report
import servers

# Started in the background by a shell we ignore SIGINT (sh(1)), under nohup(1) SIGHUP, and so would every command that a
# test starts; and a shell cannot undo that (POSIX, trap).
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# timeout(1) and the like: as with ^C, the servers end and the directories go.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A fresh directory with a short path that the unprivileged user owns and root's tests can use as well."""
    with servers.scratch() as directory:
        yield directory


@pytest.fixture(scope="session")
def clamd_server() -> Iterator[servers.Server]:
    """A real clamd that knows EICAR, for all tests together."""
    with servers.scratch() as directory, servers.clamd(directory) as server:
        yield server


@pytest.fixture(scope="session")
def spamd_server() -> Iterator[servers.Server]:
    """A real spamd that knows GTUBE, for all tests together."""
    with servers.scratch() as directory, servers.spamd(directory) as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests have said (report.py)."""
    if report.said():
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(report.said()))
