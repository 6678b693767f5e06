"""What is held can be found, shown, released once, deleted, expired and verified."""

import base64
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import strace
from click.testing import CliRunner

from deliver.admin import tree
from quarantine.commands import cli
from quarantine.files import Files
from quarantine.release import NotReleased, delete, release
from quarantine.sqlite import Index, Search
from quarantine.store import Archive, Held

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """The store of plain files; what every store must do is in test_store."""
    return Files(str(tmp_path), "quarantine")


def run(
    maildir: Path, *arguments: str, config: Path | None = None, path: str = os.defpath
) -> subprocess.CompletedProcess[str]:
    """The `quarantine` command on a mailbox's own quarantine."""
    command = [sys.executable, "-m", "quarantine", "--directory", str(maildir.parent / "quarantine"), *arguments]
    if config:
        command[3:3] = ["--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})


PUT = """
import sys
from quarantine.files import Files
from quarantine.store import Held
for recipient in ("a@example.org", "b@example.org"):
    one = Held(recipient, "c@d", "x", "for the test", 2e9, sys.argv[1], "INBOX", "")
    Files(sys.argv[1], "quarantine").prepare(one, [b"From: c@d\\n\\nx\\n"]).commit()
"""


@pytest.mark.parametrize(
    ("call", "error"),
    [("linkat", "EPERM"), ("linkat", "ENOSYS"), ("linkat", "EOPNOTSUPP"), ("fsync", "EINVAL"), ("fsync", "EIO")],
)
def test_a_poor_file_system_is_good_enough(maildir: Path, call: str, error: str) -> None:
    """Without hard links (CIFS, FUSE, FAT) or syncs of directories mail was put off until its sender got it back."""
    command = [strace.needed(), "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:error={error}", sys.executable, "-c", PUT, str(maildir)]
    if call == "fsync":  # of directories alone
        for name in ("messages", "held"):
            (maildir / "quarantine" / name).mkdir(parents=True)
            command[1:1] = ["-P", str(maildir / "quarantine" / name)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT, timeout=60)
    archive = Files(str(maildir), "quarantine")
    if error == "EIO":
        assert b"Input/output error" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert sorted(archive.read(id_).recipient for id_ in archive.ids()) == ["a@example.org", "b@example.org"]
    assert {b"".join(archive.chunks(archive.read(id_))) for id_ in archive.ids()} == {b"From: c@d\n\nx\n"}
    assert len(archive.bodies()) == 1
    assert os.listdir(maildir / "quarantine" / "tmp") == []


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
    what = {"recipient": one.recipient, "sender": one.sender, "subject": one.subject, "reason": one.reason}
    assert ({"who": "me", "did": "release", "id": one.id} | what).items() <= json.loads(audit).items()


def test_show_says_that_a_message_was_released(archive: Archive, maildir: Path) -> None:
    one = put(archive, held(maildir))
    assert "released" not in run(maildir, "show", one.id).stdout
    run(maildir, "release", one.id)
    assert "state      released" in run(maildir, "show", one.id).stdout


def test_a_release_does_not_look_at_the_others(
    archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it takes as long with a hundred thousand held as with one."""
    one = put(archive, held(maildir))
    kept = Path(archive.path)
    real_scan, real_list = os.scandir, os.listdir

    def not_here(path: Any) -> Any:
        assert not Path(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path).is_relative_to(kept)
        return path

    monkeypatch.setattr(os, "scandir", lambda path=".": real_scan(not_here(path)))
    monkeypatch.setattr(os, "listdir", lambda path=".": real_list(not_here(path)))
    release(archive, one.id, "me")
    monkeypatch.undo()
    assert len(list((maildir / "new").iterdir())) == 1


def test_an_id_leads_nowhere_else(archive: Archive, maildir: Path) -> None:
    """Path tricks."""
    put(archive, held(maildir))
    for id_ in ("../x", "..", "", "/etc/passwd", ".hidden"):
        with pytest.raises(KeyError):
            archive.read(id_)


def test_list_finds_what_is_asked_for(archive: Archive, maildir: Path) -> None:
    """By sender, recipient, subject, reason and age; JSON has the contract's keys."""
    put(archive, held(maildir, sender="old@x", time=time.time() - 10 * DAY))
    put(archive, held(maildir, subject="Your Invoice", reason="over quota"), b"other\n")
    put(archive, held(maildir, subject="[Invoices] rückstände 50*", recipient="a@example.net"), b"third\n")
    keys = {"id", "recipient", "sender", "subject", "reason", "time", "size"}
    found = [json.loads(line) for line in run(maildir, "list", "--json").stdout.splitlines()]
    assert [set(one) for one in found] == [keys, keys, keys]
    assert [one["sender"] for one in found] == ["old@x", "a@b", "a@b"]
    for arguments, number in (
        (["--sender", "OLD@*"], 1),
        (["--subject", "*invoice*"], 2),
        (["--reason", "*quota*"], 1),
        (["--older", "7 d"], 1),
        (["--newer", "7 d"], 2),
        (["--recipient", "*@example.org"], 2),
        (["--recipient", "nobody@*"], 0),
        (["--released"], 0),
        (["--subject", "*RÜCKSTÄNDE*"], 1),  # SQLite's own lower() leaves what is not ASCII as it is
        (["--subject", "[invoices]*"], 1),  # only * and ? are special, as in rules
        (["--subject", "*50\\*"], 1),
        (["--subject", "*50\\?"], 0),
        (["--subject", "*\udcff*"], 0),  # an argument that is no UTF-8
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


def test_a_damaged_index_is_made_anew(archive: Archive, maildir: Path) -> None:
    """SQLite's own files lose nothing that matters."""
    one = put(archive, held(maildir))
    for damage in (b"no database\n" * 100, b"SQLite format 3\x00" + b"\xff" * 4080):
        (Path(archive.path) / "index.sqlite").write_bytes(damage)
        done = run(maildir, "list", "--json")
        assert (done.returncode, json.loads(done.stdout)["id"]) == (0, one.id)
        assert (Path(archive.path) / "index.sqlite").read_bytes().startswith(b"SQLite format 3\x00")


def test_without_an_index_that_can_be_written(archive: Archive, maildir: Path) -> None:
    """A disk that is full or read-only: what fills it can be found and deleted all the same."""
    one = put(archive, held(maildir))
    (Path(archive.path) / "index.sqlite").mkdir()
    assert json.loads(run(maildir, "list", "--json").stdout)["id"] == one.id
    assert run(maildir, "expire", "--keep", "0 s").returncode == 0
    assert archive.ids() == []


class Full(Files):
    """No byte more can be written, until something was removed if that is ``patient``."""

    def __init__(self, base: str, relative: str, *, patient: bool) -> None:
        super().__init__(base, relative)
        self._patient = patient

    def note(self, **record: object) -> None:
        """Add to the audit log."""
        if not self._patient or self.ids("releasing"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().note(**record)


def test_what_makes_room_needs_none(archive: Archive, maildir: Path, tmp_path: Path) -> None:
    """On a full disk the record comes after the deed, or is said to be missing."""
    one, two = put(archive, held(maildir)), put(archive, held(maildir))
    delete(Full(str(tmp_path), "quarantine", patient=True), one.id, "me")
    assert json.loads((Path(archive.path) / "audit.log").read_text())["id"] == one.id
    with pytest.raises(NotReleased, match="could not be recorded"):
        delete(Full(str(tmp_path), "quarantine", patient=False), two.id, "me")
    assert archive.ids() == archive.ids("releasing") == []


def test_what_cannot_be_recorded_for_another_reason_stays(
    archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = put(archive, held(maildir))

    def refuse(**_record: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(archive, "note", refuse)
    with pytest.raises(NotReleased, match="still held"):
        delete(archive, one.id, "me")
    assert archive.ids() == [one.id]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act for others")
def test_what_root_does_is_the_owners(scratch: Path) -> None:
    """An administrator releases for somebody: whoever reads the mailbox must be able to read it, and to go on."""
    maildir = scratch / "Maildir"
    for part in ("tmp", "new", "cur", "deliver"):
        (maildir / part).mkdir(parents=True)
    owner = scratch.stat()
    for path in (maildir, *maildir.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)
    with tree.as_owner(maildir.stat()):
        one = put(Files(str(maildir), "deliver/quarantine"), held(maildir))
        two = put(Files(str(maildir), "deliver/quarantine"), held(maildir))
    command = [sys.executable, "-m", "quarantine", "--maildir", str(maildir)]
    for arguments in (["list"], ["release", one.id], ["delete", two.id], ["verify"], ["expire"]):
        subprocess.run([*command, *arguments], check=True, capture_output=True)
    assert len(list((maildir / "new").iterdir())) == 1
    owners = {path.stat().st_uid for path in maildir.rglob("*")}
    assert owners == {owner.st_uid} != {0}


def test_to_another_address_of_ours_it_is_not_filtered_again(archive: Archive, maildir: Path, tmp_path: Path) -> None:
    """It goes straight into that mailbox; not through the mail server, whose filter would hold it anew."""
    one = put(archive, held(maildir))
    other = tmp_path / "dom" / "example.org" / "other" / "Maildir"
    for part in ("tmp", "new", "cur"):
        (other / part).mkdir(parents=True)
    site = tmp_path / "site.toml"
    site.write_text(f'[users]\nmaildir = "{tmp_path}/dom/{{domain}}/{{user}}/Maildir"\n')
    done = run(maildir, "release", "--to", "other@example.org", one.id, config=site)
    assert done.returncode == 0, done.stderr
    (stored,) = (other / "new").iterdir()
    assert stored.read_bytes() == one.top.encode() + BODY.removeprefix(b"Return-Path: <a@b>\n")
    assert list((maildir / "new").iterdir()) == []


def test_to_an_address_elsewhere_it_is_a_new_message(archive: Archive, maildir: Path, tmp_path: Path) -> None:
    """Without Return-Path, which the next delivery writes, and without our Delivered-To, which is a loop to it."""
    one = put(archive, held(maildir))
    program = tmp_path / "bin" / "sendmail"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {tmp_path}/sent\n')
    program.chmod(0o755)
    done = run(maildir, "release", "--to", "you@example.org", one.id, path=str(program.parent))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "arguments").read_text() == "-i -f a@b -- you@example.org\n"
    assert (tmp_path / "sent").read_bytes() == b"X-Virus-Status: Infected (X)\n" + BODY.partition(b"\n")[2]
    refused = run(maildir, "release", "--to", "not an address", one.id)
    assert (refused.returncode, "expected an address" in refused.stderr) == (2, True)


def test_show_reads_what_is_encoded(archive: Archive, maildir: Path) -> None:
    """The text as its reader sees it, the whole header, and what is attached."""
    text = base64.encodebytes("Grüße\x1b[2J aus Köln\n".encode())
    body = (
        b"Received: from x\n\tby y\nFrom: =?utf-8?q?J=C3=BCrgen?= <a@b>\nContent-Type: multipart/mixed; boundary=b\n\n"
        b"--b\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n" + text + b"--b\n"
        b'Content-Type: image/png; name="a.png"\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=\n--b--\n'
    )
    said = run(maildir, "show", put(archive, held(maildir), body).id).stdout
    for line in ("Received: from x by y", "From: Jürgen <a@b>", "Grüße?[2J aus Köln", "file       a.png (image/png)"):
        assert line in said.splitlines()
    only_html = b"Content-Type: text/html\n\n<p>Hello <b>you</b><script>evil()</script>\n"
    said = run(maildir, "show", put(archive, held(maildir), only_html).id).stdout
    assert "Hello you" in said
    assert "evil" not in said


def test_a_user_whom_nobody_knows(archive: Archive, maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid without an entry in passwd(5) is recorded as a number."""
    one = put(archive, held(maildir))
    for name in ("SUDO_USER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    CliRunner().invoke(cli, ["--directory", archive.path, "delete", one.id], catch_exceptions=False)
    assert json.loads((Path(archive.path) / "audit.log").read_text())["who"] == str(os.getuid())


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
