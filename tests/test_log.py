"""The log: no record is lost because a file cannot take it."""

import json
import syslog
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
