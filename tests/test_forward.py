"""Sending on: to qmail-queue or sendmail, by argument list, with a loop marker; any failure of theirs is "try again"."""

import json
import os
import sys
from pathlib import Path

import pytest

from deliver.errors import Deferred
from deliver.forward import Forwarder

RECORDER = """#!{python}
import json, os, sys
record = {{"argv": sys.argv[1:], "stdin": sys.stdin.buffer.read().decode("latin-1"), "environment": sorted(os.environ)}}
if {queue}:
    record["envelope"] = os.fdopen(1, "rb").read().decode("latin-1")
open({log!r}, "w").write(json.dumps(record))
sys.exit({code})
"""


def program(directory: Path, name: str, *, code: int = 0, queue: bool = False) -> Path:
    """A program that writes down how it was called and ends with ``code``; returns where it writes."""
    log = directory / f"{name}.json"
    path = directory / name
    path.write_text(RECORDER.format(python=sys.executable, queue=queue, log=str(log), code=code))
    path.chmod(0o755)
    return log


def test_under_qmail_the_queue_gets_message_and_envelope(tmp_path: Path) -> None:
    """qmail-queue(8): message on descriptor 0, F sender NUL T recipient NUL NUL on 1."""
    log = program(tmp_path, "qmail-queue", queue=True)
    forwarder = Forwarder(qmail=True, path=str(tmp_path))
    forwarder.send("a@b", "c@d", [b"Delivered-To: x\n", b"Subject: y\n\nz\n"])
    record = json.loads(log.read_text())
    assert record["envelope"] == "Fa@b\0Tc@d\0\0"
    assert record["stdin"] == "Delivered-To: x\nSubject: y\n\nz\n"


@pytest.mark.parametrize(
    ("sender", "said"), [("a@b", "a@b"), ("", "<>"), ("-oops@b", "-oops@b"), ("a b;c@d", "a b;c@d")]
)
def test_elsewhere_sendmail_is_called_without_a_shell(tmp_path: Path, sender: str, said: str) -> None:
    """sendmail -i -f SENDER -- ADDRESS."""
    log = program(tmp_path, "sendmail")
    program(tmp_path, "qmail-queue", queue=True)
    Forwarder(qmail=False, path=str(tmp_path)).send(sender, "$(touch x)@d", [b"message"])
    assert json.loads(log.read_text())["argv"] == ["-i", "-f", said, "--", "$(touch x)@d"]


def test_the_programs_environment_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qmail's variables hold a stranger's words."""
    monkeypatch.setenv("SENDER", "() { :; }; echo")
    monkeypatch.setenv("LD_PRELOAD_", "x")
    log = program(tmp_path, "sendmail")
    Forwarder(qmail=False, path=str(tmp_path)).send("a@b", "c@d", [b"x"])
    assert set(json.loads(log.read_text())["environment"]) <= {"PATH", "HOME", "USER", "LOGNAME", "TZ", "LC_CTYPE"}


@pytest.mark.parametrize("code", [1, 31, 64, 75, 100, 111])
@pytest.mark.parametrize("name", ["sendmail", "qmail-queue"])
def test_any_failure_of_theirs_is_tried_again(tmp_path: Path, name: str, code: int) -> None:
    """Their "permanent" may be ours to mend."""
    program(tmp_path, name, code=code, queue=name == "qmail-queue")
    with pytest.raises(Deferred, match=str(code)):
        Forwarder(qmail=name == "qmail-queue", path=str(tmp_path)).send("a@b", "c@d", [b"x"])


def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    """Also while it does not read what we write."""
    path = tmp_path / "sendmail"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    with pytest.raises(Deferred, match="did not end within"):
        Forwarder(qmail=False, path=str(tmp_path), timeout=0.3).send("a@b", "c@d", [b"x" * 1_000_000])


def test_none_at_all_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without sendmail keeps its mail."""
    monkeypatch.setattr("deliver.forward.SENDMAIL", ())
    with pytest.raises(Deferred, match="sendmail"):
        Forwarder(qmail=False, path=f"relative:{tmp_path}").send("a@b", "c@d", [b"x"])


def test_a_command_may_write_a_new_sender(tmp_path: Path) -> None:
    """SRS; never for the null sender."""
    log = program(tmp_path, "sendmail")
    rewrite = tmp_path / "srs"
    rewrite.write_text('#!/bin/sh\necho "SRS0=$1"\n')
    rewrite.chmod(0o755)
    forwarder = Forwarder(qmail=False, path=str(tmp_path), rewrite=[str(rewrite)])
    forwarder.send("a@b", "c@d", [b"x"])
    assert json.loads(log.read_text())["argv"][2] == "SRS0=a@b"
    forwarder.send("", "c@d", [b"x"])
    assert json.loads(log.read_text())["argv"][2] == "<>"
    rewrite.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Deferred):
        forwarder.send("a@b", "c@d", [b"x"])


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    """A resident service sends many."""
    program(tmp_path, "sendmail")
    forwarder = Forwarder(qmail=False, path=str(tmp_path))
    forwarder.send("a@b", "c@d", [b"x"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        forwarder.send("a@b", "c@d", [b"x"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_mtas_own_new_sender_is_used(tmp_path: Path) -> None:
    """NEWSENDER: a list's owner gets the bounces (dot-qmail(5))."""
    log = program(tmp_path, "qmail-queue", queue=True)
    Forwarder(qmail=True, path=str(tmp_path), sender="list-owner@b").send("a@b", "c@d", [b"x"])
    assert json.loads(log.read_text())["envelope"] == "Flist-owner@b\0Tc@d\0\0"
