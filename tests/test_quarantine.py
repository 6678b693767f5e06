"""What is held can be found, shown, released once, deleted, expired and verified."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from quarantine.files import Files
from quarantine.release import NotReleased, delete, release, repair
from quarantine.sqlite import Index, Search
from quarantine.store import Archive, Held

DAY = 86400.0
BODY = b"Return-Path: <a@b>\nFrom: A <a@b>\nSubject: hello \x1b[31mred\n\nbody\n"


def held(maildir: Path | str, **more: Any) -> Held:
    """An envelope that is yet to be held."""
    fields: dict[str, Any] = {
        "recipient": "you@example.org",
        "sender": "a@b",
        "subject": "hello",
        "reason": "clamd found the virus X",
        "time": time.time(),
        "maildir": str(maildir),
        "folder": "INBOX",
        "top": "Return-Path: <a@b>\nDelivered-To: you@example.org\nX-Virus-Status: Infected (X)\n",
        "verdicts": ({"scanner": "clamd", "finding": "virus"},),
    }
    return Held(**{**fields, **more})


def put(archive: Archive, one: Held, body: bytes = BODY) -> Held:
    """Hold a message."""
    return archive.prepare(one, [body]).commit()


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty mailbox."""
    for part in ("tmp", "new", "cur"):
        (tmp_path / "Maildir" / part).mkdir(parents=True)
    return tmp_path / "Maildir"


@pytest.fixture(params=["files"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """A store; a second backend joins here and must pass the same tests."""
    assert request.param == "files"
    return Files(str(tmp_path), "quarantine")


def run(maildir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The `quarantine` command on a mailbox's own quarantine."""
    command = [sys.executable, "-m", "quarantine", "--directory", str(maildir.parent / "quarantine"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_was_put_is_there(archive: Archive, maildir: Path) -> None:
    """Byte for byte, with its envelope."""
    one = put(archive, held(maildir))
    assert archive.ids() == [one.id]
    assert archive.read(one.id) == one
    assert b"".join(archive.chunks(one)) == BODY
    assert one.size == len(BODY)


def test_what_was_aborted_is_not(archive: Archive, maildir: Path) -> None:
    """Nor is anything left of it."""
    archive.prepare(held(maildir), [BODY]).abort()
    assert archive.ids() == []
    assert archive.bodies() == {}
    assert archive.sweep(0) == []


def test_a_body_goes_with_its_last_envelope(archive: Archive, maildir: Path) -> None:
    """Two recipients, one file."""
    one, two = put(archive, held(maildir)), put(archive, held(maildir, recipient="else@example.org"))
    assert len(archive.bodies()) == 1
    index = Index(archive)
    delete(archive, one.id, "me")
    assert archive.collect(index.referenced) == []
    assert b"".join(archive.chunks(archive.read(two.id))) == BODY
    delete(archive, two.id, "me")
    assert archive.collect(index.referenced) == [two.body]
    index.close()


def test_no_body_goes_while_an_envelope_is_added(archive: Archive, maildir: Path) -> None:
    """Deliveries and the removal of bodies in turn, many times: no envelope ever loses its message."""
    index_thread_done = threading.Event()

    def collect() -> None:
        index = Index(archive)
        while not index_thread_done.is_set():
            archive.collect(index.referenced)
        index.close()

    put(archive, held(maildir))
    collector = threading.Thread(target=collect)
    collector.start()
    for _ in range(60):
        one = put(archive, held(maildir))
        assert b"".join(archive.chunks(one)) == BODY
        delete(archive, one.id, "me")
    index_thread_done.set()
    collector.join()


def test_release_delivers_to_where_it_was_going(archive: Archive, maildir: Path) -> None:
    """Our lines, then the message, with one Return-Path; into a folder that is made if need be; and counted."""
    (maildir / "maildirsize").write_text("100000S\n           0            0\n")
    one = put(archive, held(maildir, folder="Lists"))
    release(archive, one.id, "me")
    (stored,) = (maildir / ".Lists" / "new").iterdir()
    assert stored.read_bytes() == one.top.encode() + BODY.removeprefix(b"Return-Path: <a@b>\n")
    assert (maildir / "maildirsize").read_text().split()[-2:] == [str(stored.stat().st_size), "1"]
    assert archive.ids() == []
    assert archive.ids("released") == [one.id]
    audit = (Path(archive.path) / "audit.log").read_text()
    assert {"who": "me", "did": "release", "id": one.id}.items() <= json.loads(audit).items()


def test_two_who_release_at_once_deliver_once(archive: Archive, maildir: Path) -> None:
    """Whoever moves the envelope first."""
    one = put(archive, held(maildir))
    outcomes: list[str] = []

    def try_it() -> None:
        try:
            release(archive, one.id, "me")
            outcomes.append("released")
        except NotReleased:
            outcomes.append("not")

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["not"] * 7 + ["released"]
    assert len(list((maildir / "new").iterdir())) == 1


def test_a_release_that_fails_leaves_it_held(archive: Archive, tmp_path: Path) -> None:
    """The mailbox is gone."""
    one = put(archive, held(tmp_path / "nowhere"))
    with pytest.raises(NotReleased, match="still held"):
        release(archive, one.id, "me")
    assert archive.ids() == [one.id]


def test_an_interrupted_release_is_taken_back(archive: Archive, maildir: Path) -> None:
    """A crash between the claim and the delivery; a release in work is left alone."""
    one = put(archive, held(maildir, time=time.time() - DAY))
    archive.move(one.id, "held", "releasing")
    index = Index(archive)
    assert list(repair(archive, index.referenced, DAY)) == []
    moved = Path(archive.path) / "releasing" / f"{one.id}.json"
    real = os.stat

    def old(path: Any, **more: Any) -> Any:
        state = real(path, **more)
        return os.stat_result((*state[:9], 0.0)) if str(path) == str(moved) else state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quarantine.release.os.stat", old)
        (said,) = repair(archive, index.referenced, DAY)
    assert "interrupted" in said
    assert archive.ids() == [one.id]
    index.close()


def test_an_id_leads_nowhere_else(archive: Archive) -> None:
    """Path tricks."""
    for id_ in ("../x", "..", "", "/etc/passwd", ".hidden"):
        with pytest.raises(KeyError):
            archive.read(id_)


def test_list_finds_what_is_asked_for(archive: Archive, maildir: Path) -> None:
    """By sender, recipient, subject, reason and age; JSON has the contract's keys."""
    put(archive, held(maildir, sender="old@x", time=time.time() - 10 * DAY))
    put(archive, held(maildir, subject="Your Invoice", reason="over quota"), b"other\n")
    keys = {"id", "recipient", "sender", "subject", "reason", "time", "size"}
    found = [json.loads(line) for line in run(maildir, "list", "--json").stdout.splitlines()]
    assert [set(one) for one in found] == [keys, keys]
    assert [one["sender"] for one in found] == ["old@x", "a@b"]
    for arguments, number in (
        (["--sender", "OLD@*"], 1),
        (["--subject", "*invoice*"], 1),
        (["--reason", "*quota*"], 1),
        (["--older", "7 d"], 1),
        (["--newer", "7 d"], 1),
        (["--recipient", "*@example.org"], 2),
        (["--recipient", "nobody@*"], 0),
        (["--released"], 0),
    ):
        assert len(run(maildir, "list", "--json", *arguments).stdout.splitlines()) == number, arguments


def test_show_is_safe_for_a_terminal(archive: Archive, maildir: Path) -> None:
    """No escape sequence comes through, and the explanation is there."""
    one = put(archive, held(maildir, subject="\x1b]0;owned\x07"))
    said = run(maildir, "show", one.id).stdout
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "clamd found the virus X" in said
    assert "body" in said
    raw = run(maildir, "show", "--raw", one.id).stdout
    assert raw == one.top + BODY.decode().removeprefix("Return-Path: <a@b>\n")


def test_the_commands_work_and_say_who(archive: Archive, maildir: Path) -> None:
    """release, delete, expire, verify from the shell."""
    one, two = put(archive, held(maildir)), put(archive, held(maildir), b"second\n")
    three = put(archive, held(maildir, time=time.time() - 31 * DAY), b"third\n")
    assert run(maildir, "verify").returncode == 0
    assert run(maildir, "release", one.id).returncode == 0
    again = run(maildir, "release", one.id)
    assert (again.returncode, "already" in again.stderr) == (1, True)
    assert run(maildir, "delete", two.id).returncode == 0
    assert three.id in run(maildir, "expire", "--dry-run").stdout
    assert run(maildir, "expire").stdout == ""
    assert archive.ids() == []
    assert set(archive.bodies()) == {one.body}
    did = [json.loads(line)["did"] for line in (Path(archive.path) / "audit.log").read_text().splitlines()]
    assert did == ["release", "delete", "expire"]


def test_verify_finds_what_a_crash_or_a_hand_left(archive: Archive, maildir: Path) -> None:
    """Orphans both ways, a changed message, an envelope that is none."""
    one, two, three = (put(archive, held(maildir), name) for name in (b"1\n", b"2\n", b"3\n"))
    root = Path(archive.path)
    (root / "messages" / "orphan").write_bytes(b"x")
    (root / one.body).unlink()
    (root / two.body).write_bytes(b"changed")
    (root / "held" / f"{three.id}.json").write_text("no json")
    done = run(maildir, "verify")
    assert done.returncode == 1
    assert "messages/orphan: nobody" in done.stdout
    assert f"{one.id}: its message" in done.stdout
    assert f"{two.id}: its message is not the one" in done.stdout
    assert f"{three.id}: the envelope cannot be read" in done.stdout


def test_the_index_may_be_lost(archive: Archive, maildir: Path) -> None:
    """It is made again from the envelopes."""
    put(archive, held(maildir))
    assert len(run(maildir, "list", "--json").stdout.splitlines()) == 1
    (Path(archive.path) / "index.sqlite").unlink()
    assert len(run(maildir, "list", "--json").stdout.splitlines()) == 1


def test_nobody_else_can_read_it(archive: Archive, maildir: Path) -> None:
    """Files 0600, directories 0700, the index no wider."""
    put(archive, held(maildir))
    run(maildir, "list")
    for path in Path(archive.path).rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_search_is_by_value_not_by_sql(archive: Archive, maildir: Path) -> None:
    """A quote in a search is a quote."""
    put(archive, held(maildir))
    index = Index(archive)
    index.update()
    assert list(index.search(Search(sender="' OR 1=1 --"), time.time())) == []
    index.close()
