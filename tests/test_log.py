"""The log: no record is lost because a file cannot take it."""

import json
import syslog
import time
from pathlib import Path

import pytest

from deliver import log


def test_what_a_file_cannot_take_goes_to_syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: said.append((priority, line)))
    write = log.to(str(tmp_path / "later" / "log"))
    write(level="warning", recipient="you@example.org")
    ((priority, line),) = said
    assert (priority, json.loads(line)["recipient"]) == (syslog.LOG_WARNING, "you@example.org")
    (tmp_path / "later").mkdir()
    write(recipient="friend@example.org")
    assert json.loads((tmp_path / "later" / "log").read_text())["recipient"] == "friend@example.org"
    assert len(said) == 1


def test_each_place_gets_one_line_with_the_time(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, str]] = []
    opened: list[tuple[str, int, int]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *how: opened.append(how))
    monkeypatch.setattr(syslog, "syslog", lambda priority, line: said.append((priority, line)))
    log.to("stderr")(subject="two\nlines \x1b[1m\u00fc")
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1
    assert shown.isascii()
    assert json.loads(shown)["subject"] == "two\nlines \x1b[1m\u00fc"
    assert not said
    log.to("syslog")(subject="x" * 10_000)
    ((priority, line),) = said
    assert (priority, opened) == (syslog.LOG_INFO, [("deliver", syslog.LOG_PID, syslog.LOG_MAIL)])
    assert len(line) < 8192  # rsyslog(8), $MaxMessageSize
    assert abs(json.loads(shown)["time"] - time.time()) < 60
    assert not capfd.readouterr().err
