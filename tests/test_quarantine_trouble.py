"""The quarantine where others are at work in it, or somebody or something has spoilt it: nothing is lost, none is hidden."""

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_quarantine import BODY, DAY, archive, held, maildir, put, run

from quarantine.commands import cli
from quarantine.files import Files
from quarantine.release import delete, release
from quarantine.sqlite import Index
from quarantine.store import Archive, envelope

__all__ = ["archive", "maildir"]  # fixtures

WRONG: dict[str, dict[str, Any]] = {
    "a time that is none": {"time": "\x1b[31mnow"},
    "no number": {"time": float("nan")},
    "beyond all calendars": {"time": 1e300},
    "a size that is none": {"size": "\x1b[31m1"},
    "a size beyond SQLite's": {"size": 2**70},
    "half a character": {"subject": "\ud800"},
    "a list": {"subject": ["a"]},
    "no recipient": {"recipient": None},
    "verdicts that are none": {"verdicts": 5},
    "a body that is none": {"body": 5},
}


def spoil(archive: Archive, name: str, content: bytes) -> None:
    """A file among the envelopes, as its owner can put one there."""
    (Path(archive.path) / "held" / name).write_bytes(content)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_envelope_hides_no_other(archive: Archive, maildir: Path, wrong: dict[str, Any]) -> None:
    """Root looks at what the mailbox's owner can write: nothing in it ends a command, or reaches the terminal."""
    one = put(archive, held(maildir, time=time.time() - 31 * DAY))
    spoil(archive, "bad.json", json.dumps(one._asdict() | wrong).encode())
    listed = run(maildir, "list", "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [one.id]
    assert listed.stderr == "1 envelope cannot be read; `quarantine verify` says which and why\n"
    for command, code, words in (
        (["show", "bad"], 1, "cannot be read"),
        (["verify"], 1, "bad: the envelope"),
        (["expire"], 0, ""),
    ):
        done = run(maildir, *command)
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert archive.ids() == ["bad"]


def test_what_is_no_envelope_hides_none(archive: Archive, maildir: Path) -> None:
    """Directories, pipes, links, and names that a terminal obeys."""
    one = put(archive, held(maildir))
    place = Path(archive.path) / "held"
    (place / "directory.json").mkdir()
    os.mkfifo(place / "pipe.json")
    (place / "link.json").symlink_to("/etc/passwd")
    spoil(archive, "a\x1b[31m\nb.json", json.dumps(one._asdict()).encode())
    spoil(archive, "deep.json", b"[" * 100_000)
    Path(archive.path, "messages", "directory").mkdir()
    assert [json.loads(line)["id"] for line in run(maildir, "list", "--json").stdout.splitlines()] == [one.id]
    said = run(maildir, "verify").stdout
    assert len(said.splitlines()) == 5
    assert "\x1b" not in said
    assert run(maildir, "delete", one.id).returncode == 0


def test_a_path_in_an_envelope_does_not_reach_the_terminal(archive: Archive, tmp_path: Path, maildir: Path) -> None:
    one = put(archive, held(f"{tmp_path}/\x1b]0;owned\x07"))
    done = run(maildir, "release", one.id)
    assert (done.returncode, "\x1b" in done.stderr, "still held" in done.stderr) == (1, False, True)


def test_no_message_goes_while_an_envelope_cannot_be_read(archive: Archive, maildir: Path) -> None:
    """It may be that envelope's: a damaged one, or one of a later version's."""
    one, two = put(archive, held(maildir), b"one\n"), put(archive, held(maildir), b"two\n")
    text = (Path(archive.path) / "held" / f"{one.id}.json").read_bytes()
    spoil(archive, f"{one.id}.json", text[:40])
    assert run(maildir, "delete", two.id).returncode == 0
    assert set(archive.bodies()) == {one.body, two.body}
    spoil(archive, f"{one.id}.json", text)
    assert run(maildir, "expire").returncode == 0
    assert set(archive.bodies()) == {one.body}


def test_what_is_missing_in_an_envelope_is_named() -> None:
    with pytest.raises(ValueError, match="its top is missing"):
        envelope({"recipient": "a", "sender": "", "subject": "", "reason": "", "maildir": "", "folder": ""}, "1.2.a")


@pytest.mark.parametrize("command", ["list", "show", "release", "delete", "verify", "expire", "digest"])
def test_looking_makes_no_quarantine(tmp_path: Path, command: str) -> None:
    """One that root made by looking could not be written to by those who deliver."""
    given = [command, "1.2.a"] if command in ("show", "release", "delete") else [command]
    done = CliRunner().invoke(cli, ["--directory", str(tmp_path / "quarantine"), *given])
    assert (done.exit_code, "there is no quarantine" in done.output) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_expire_goes_on_where_others_are_faster(archive: Archive, maildir: Path) -> None:
    """cron's run and a person's at once: what one has deleted, or is just releasing, the other passes over."""
    ids = [put(archive, held(maildir, time=time.time() - 31 * DAY), b"%d\n" % number).id for number in range(60)]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run, maildir, *words) for words in (["expire"], ["expire"], ["release", *ids[::2]])]
    assert [(one.result().returncode, one.result().stderr) for one in runs[:2]] == [(0, "")] * 2
    assert archive.ids() == archive.ids("releasing") == []
    records = map(json.loads, (Path(archive.path) / "audit.log").read_text().splitlines())
    did = [(one["id"], one["did"]) for one in records]
    assert len(list((maildir / "new").iterdir())) == sum(verb == "release" for _, verb in did)
    assert {id_ for id_, _ in did} == set(ids)


def test_faults_and_what_would_go_for_programs(archive: Archive, maildir: Path) -> None:
    one = put(archive, held(maildir, time=time.time() - 31 * DAY))
    (line,) = run(maildir, "expire", "--dry-run", "--json").stdout.splitlines()
    (listed,) = run(maildir, "list", "--json").stdout.splitlines()
    assert json.loads(line) == json.loads(listed) | {"state": "held"}
    assert run(maildir, "verify", "--json").stdout == ""
    (Path(archive.path) / one.body).write_bytes(b"")
    (fault,) = map(json.loads, run(maildir, "verify", "--json").stdout.splitlines())
    assert (one.id in fault["text"], fault["mended"]) == (True, False)


def test_one_mailbox_in_trouble_does_not_stop_the_others(tmp_path: Path) -> None:
    """`quarantine expire PATH` goes through all of them."""
    stores = []
    for name in ("a", "b"):
        for part in ("tmp", "new", "cur"):
            (tmp_path / name / "Maildir" / part).mkdir(parents=True)
        stores.append(Files(str(tmp_path / name / "Maildir"), "deliver/quarantine"))
        put(stores[-1], held(tmp_path, time=time.time() - 31 * DAY))
    (tmp_path / "a" / "Maildir" / "deliver" / "quarantine" / "held").rename(tmp_path / "away")
    (tmp_path / "a" / "Maildir" / "deliver" / "quarantine" / "held").write_bytes(b"")
    done = CliRunner().invoke(cli, ["expire", str(tmp_path)], env={"DELIVER_CONFIG": "/nonexistent"})
    assert (done.exit_code, "Not a directory" in done.output) == (1, True)
    assert stores[1].ids() == []


def test_no_envelope_moves_while_messages_are_collected(
    archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed release puts its envelope back: between two looks it would be found in neither place."""
    one = put(archive, held(maildir))
    wait = fcntl.flock
    monkeypatch.setattr("quarantine.files.fcntl.flock", lambda file, how: wait(file, how | fcntl.LOCK_NB))

    def referenced() -> set[str]:
        with pytest.raises(BlockingIOError):
            archive.move(one.id, "held", "releasing")
        return {one.body}

    assert archive.collect(referenced) == []
    assert archive.ids() == [one.id]


def test_the_directory_is_read_while_no_other_can_write_to_the_index(archive: Archive, maildir: Path) -> None:
    """Else one that has read it earlier takes out what has come since, and its message would seem to be nobody's."""
    put(archive, held(maildir))
    asked = []

    class Watched(Files):
        def ids(self, state: str = "held") -> list[str]:
            with (
                closing(sqlite3.connect(f"{self.path}/index.sqlite", timeout=0)) as other,
                pytest.raises(sqlite3.OperationalError, match="locked"),
            ):
                other.execute("BEGIN IMMEDIATE")
            asked.append(state)
            return super().ids(state)

    index = Index(Watched(str(maildir.parent), "quarantine"))
    assert len(index.referenced()) == 1
    assert asked == ["held", "releasing", "released"]
    index.close()


def test_verify_finds_nothing_wrong_with_what_comes_meanwhile(archive: Archive, maildir: Path) -> None:
    """A message whose envelope is about to follow is no orphan."""
    put(archive, held(maildir))
    done = threading.Event()

    def deliver() -> None:
        for number in range(150):
            put(archive, held(maildir), b"%d\n" % number)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        delivering = pool.submit(deliver)
        while not done.is_set():
            found = CliRunner().invoke(cli, ["--directory", archive.path, "verify"])
            assert found.exit_code == 0, found.output
        delivering.result()


def test_two_processes_that_release_at_once_deliver_once(archive: Archive, maildir: Path) -> None:
    """A hundred times: each of them is told of every message, in the same order."""
    ids = [put(archive, held(maildir), b"%d\n" % number).id for number in range(100)]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: run(maildir, "release", *ids), range(2)))
    said = [line for one in runs for line in one.stdout.splitlines()]
    assert len(said) == len({line.partition(":")[0] for line in said}) == 100
    assert (
        len({path.read_bytes() for path in (maildir / "new").iterdir()})
        == len(list((maildir / "new").iterdir()))
        == 100
    )


def test_the_audit_log_after_a_cut(archive: Archive, maildir: Path) -> None:
    """A full disk, or a crash, in the middle of a line."""
    one = put(archive, held(maildir))
    (Path(archive.path) / "audit.log").write_bytes(b'{"time": 17')
    release(archive, one.id, "me")
    cut, line = (Path(archive.path) / "audit.log").read_text().splitlines()
    assert (cut, json.loads(line)["id"]) == ('{"time": 17', one.id)


def test_what_verify_mends_is_recorded(archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every other action."""
    one = put(archive, held(maildir))
    archive.move(one.id, "held", "releasing")
    monkeypatch.setattr("quarantine.release.INTERRUPTED", 0.0)
    monkeypatch.setenv("SUDO_USER", "alice")
    CliRunner().invoke(cli, ["--directory", archive.path, "verify", "--repair"], catch_exceptions=False)
    (record,) = map(json.loads, (Path(archive.path) / "audit.log").read_text().splitlines())
    assert (record["who"], record["did"], one.id in record["what"]) == ("alice", "repair", True)


def test_list_tells_of_interrupted_releases(archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in no list, and somebody may wait for them."""
    one = put(archive, held(maildir))
    archive.move(one.id, "held", "releasing")
    assert run(maildir, "list").stderr == ""  # in work
    monkeypatch.setattr("quarantine.release.INTERRUPTED", 0.0)
    done = CliRunner().invoke(cli, ["--directory", archive.path, "list"], catch_exceptions=False)
    assert "1 message more" in done.output
    assert "verify --repair" in done.output


def test_what_is_released_into_a_full_mailbox_comes_alone(archive: Archive, maildir: Path) -> None:
    """It is stored and counted; a warning without words, of which the command has none, is not."""
    (maildir / "maildirsize").write_text("100S\n         200            1\n")
    (maildir / "cur" / "1.a.b,S=200:2,S").write_bytes(b"x" * 200)
    one = put(archive, held(maildir))
    assert run(maildir, "release", one.id).returncode == 0
    (stored,) = (maildir / "new").iterdir()
    assert stored.read_bytes().endswith(BODY[-20:])
    counted = (maildir / "maildirsize").read_text().split()[1:]
    assert sum(map(int, counted[::2])) == 200 + stored.stat().st_size


def test_what_was_released_expires_on_the_record(archive: Archive, maildir: Path) -> None:
    one = put(archive, held(maildir, time=time.time() - 31 * DAY))
    release(archive, one.id, "me")
    assert run(maildir, "expire").returncode == 0
    records = list(map(json.loads, (Path(archive.path) / "audit.log").read_text().splitlines()))
    assert [record["did"] for record in records] == ["release", "expire"]
    assert archive.bodies() == {}


def test_a_damaged_envelope_can_be_deleted(archive: Archive, maildir: Path) -> None:
    one = put(archive, held(maildir))
    spoil(archive, f"{one.id}.json", b"")
    delete(archive, one.id, "me")
    assert archive.ids() == archive.ids("releasing") == []


def test_a_message_that_is_gone_is_said_to_be(archive: Archive, maildir: Path) -> None:
    one = put(archive, held(maildir))
    (Path(archive.path) / one.body).unlink()
    for command in (["show", one.id], ["show", "--raw", one.id], ["release", one.id]):
        done = run(maildir, *command)
        assert (done.returncode, f"its message {one.body} is gone" in done.stderr) == (1, True), done


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act for others")
def test_a_mode_that_shuts_out_its_owner_is_said(scratch: Path) -> None:
    """An envelope that a restored backup gave to root: the others are listed, and verify says which it is."""
    archive = Files(str(scratch), "quarantine")
    one, two = put(archive, held(scratch)), put(archive, held(scratch))
    owner = scratch.stat()
    for path in (Path(archive.path), *Path(archive.path).rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    os.chown(Path(archive.path) / "held" / f"{one.id}.json", 0, 0)
    command = [sys.executable, "-m", "quarantine", "--directory", archive.path]
    said = subprocess.run([*command, "list", "--json"], capture_output=True, text=True, check=True)
    assert [json.loads(line)["id"] for line in said.stdout.splitlines()] == [two.id]
    said = subprocess.run([*command, "verify"], capture_output=True, text=True, check=False)
    assert (said.returncode, f"{one.id}: the envelope cannot be read: " in said.stdout) == (1, True)
