"""doctor: real scanners are found well, broken parts are found broken, and each is told what to do."""

import json
import os
import shutil
import socket
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from click.testing import CliRunner
from main_job import own

from deliver import config
from deliver.admin import doctor, doctor_mailboxes, doctor_scanners, tree
from deliver.admin.doctor import Said
from deliver.commands import cli
from deliver.commands.sample import sample_message

SAMPLES = {kind: sample_message(kind).encode() for kind in ("ham", "spam", "virus")}


def case(directory: Path, text: str) -> doctor.Case:
    """What is examined, with this configuration."""
    path = directory / "site.toml"
    path.write_text(text)
    path.chmod(0o644)
    settings, _ = config.read(str(path))
    return doctor.Case(str(path), settings, SAMPLES, str(directory), time.time())


def levels(found: list[Said]) -> list[str]:
    return [one.level for one in found]


def words(found: list[Said]) -> str:
    return "\n".join(f"{one.words} -> {one.advice}" for one in found)


def test_real_scanners_are_well(tmp_path: Path, clamd_server: servers.Server, spamd_server: servers.Server) -> None:
    one = case(tmp_path, f'[clamd]\naddress = "{clamd_server.address}"\n[spamd]\naddress = "{spamd_server.address}"\n')
    assert "EICAR seen as Eicar-Test-Signature" in words(list(doctor_scanners.eicar(one)))
    assert levels(list(doctor_scanners.eicar(one))) == ["ok"]
    found = list(doctor_scanners.gtube(one))
    assert (levels(found), "GTUBE seen" in words(found)) == (["ok"], True)
    assert words(list(doctor_scanners.the_spamd(one))).startswith("SpamAssassin ")
    # The test's clamd has one signature of its own, and no version of those of the vendor.
    assert "ClamAV" in words(list(doctor_scanners.the_clamd(one)))


def test_a_clamd_that_takes_less_than_we_send(tmp_path: Path, clamd_server: servers.Server) -> None:
    one = case(tmp_path, f'[clamd]\naddress = "{clamd_server.address}"\nmax-size = "26 MiB"\n')
    assert "StreamMaxLength" in words(list(doctor_scanners.eicar(one)))


def test_scanners_that_are_not_there(tmp_path: Path) -> None:
    one = case(tmp_path, f'[clamd]\naddress = "unix:{tmp_path}/c"\n[spamd]\naddress = "unix:{tmp_path}/s"\n')
    for check in (doctor_scanners.the_clamd, doctor_scanners.eicar, doctor_scanners.the_spamd):
        assert levels(list(check(one))) == ["problem"], check
    assert "is clamd running" in words(list(doctor_scanners.the_clamd(one)))
    assert "is spamd running" in words(list(doctor_scanners.the_spamd(one)))


def test_each_member_of_a_pool(tmp_path: Path, clamd_server: servers.Server, spamd_server: servers.Server) -> None:
    """Deliveries pass over a dead one in silence: only here is it seen before the last one dies."""
    dead = f"unix:{tmp_path}/dead"
    text = f'[clamd]\naddress = ["{clamd_server.address}", "{dead}"]\n'
    text += f'[spamd]\naddress = ["{dead}", "{spamd_server.address}"]\n'
    one = case(tmp_path, text)
    for check, alive, expected in (
        (
            doctor_scanners.the_clamd,
            clamd_server,
            ["warning", "problem"],
        ),  # that one does not say how old its signatures are
        (doctor_scanners.eicar, clamd_server, ["ok", "problem"]),
        (doctor_scanners.the_spamd, spamd_server, ["problem", "ok"]),
        (doctor_scanners.gtube, spamd_server, ["ok"]),
    ):
        found = list(check(one))
        assert levels(found) == expected, (check, found)
        by_level = {said.level == "problem": said.words for said in found}
        assert by_level[False].startswith(f"{alive.address}: ")
        assert by_level.get(True, dead).startswith(dead)


def test_every_other_scanner_must_find_its_kind(tmp_path: Path) -> None:
    """A program that looks for EICAR, one that finds nothing, one that is not there, and an rspamd that is down."""

    def program(name: str, *argv: str) -> str:
        codes = '{ "0" = "clean", "1" = "virus" }'
        return f'[[scanner]]\nkind = "command"\nname = "{name}"\ncommand = {json.dumps(argv)}\ncodes = {codes}\n'

    text = program("good", "/bin/sh", "-c", '! grep -q EICAR "$0"', "{file}") + program("blind", "/bin/true", "{file}")
    text += program("gone", f"{tmp_path}/none", "{file}")
    text += f'[[scanner]]\nkind = "rspamd"\nname = "r"\naddress = "unix:{tmp_path}/r"\n[spam]\ndelete-above = 15.0\n'
    found = list(doctor_scanners.the_others(case(tmp_path, text)))
    assert levels(found) == ["ok", "problem", "problem", "problem"]
    starts = (
        "good: EICAR seen",
        "blind: EICAR was not seen: clean",
        "gone: EICAR was not seen: failed",
        "r: GTUBE was not",
    )
    for said, start in zip(found, starts, strict=True):
        assert said.words.startswith(start)
        assert said.level == "ok" or said.advice


@pytest.mark.parametrize(("days", "level"), [(0, "ok"), (2, "ok"), (5, "warning")])
def test_age_of_signatures(tmp_path: Path, days: int, level: str) -> None:
    """The form of VERSION is clamd(8)'s."""
    made = time.strftime("%a %b %d %H:%M:%S %Y", time.gmtime(time.time() - days * 86400))
    answer = servers.answer(f"ClamAV 1.4.3/27000/{made}\n".encode())
    with servers.Scripted(tmp_path, servers.read_some(8), answer) as peer:
        found = list(doctor_scanners.the_clamd(case(tmp_path, f'[clamd]\naddress = "{peer.address}"\n')))
    assert levels(found) == [level]
    assert f"signatures 27000, {days} days old" in words(found)


def spamds(header: bytes, spam: bytes) -> bytes:
    """An answer to HEADERS (spamd/PROTOCOL)."""
    body = header + b"\r\n\r\n"
    head = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: %s\r\n\r\n" % (len(body), spam)
    return head + body


def test_a_slow_spamd_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_scanners, "SLOW", 0.1)
    answer = servers.answer(spamds(b"X-Spam-Status: No, score=0.0 required=5.0", b"False ; 0.0 / 5.0"))
    with servers.Scripted(tmp_path, servers.read_all, servers.wait(0.2), answer) as peer:
        found = list(doctor_scanners.the_spamd(case(tmp_path, f'[spamd]\naddress = "{peer.address}"\n')))
    assert levels(found) == ["warning"]
    for word in ("resolver", "DCC", "Razor", "Pyzor"):
        assert word in words(found)


def test_a_spamd_that_sees_no_spam(tmp_path: Path) -> None:
    answer = servers.answer(spamds(b"X-Spam-Status: No, score=0.0 required=5.0", b"False ; 0.0 / 5.0"))
    with servers.Scripted(tmp_path, servers.read_all, answer) as peer:
        found = list(doctor_scanners.gtube(case(tmp_path, f'[spamd]\naddress = "{peer.address}"\n')))
    assert levels(found) == ["problem"]


def test_the_configuration(scratch: Path) -> None:
    scratch.chmod(0o755)
    directory = scratch / "etc"
    directory.mkdir(mode=0o755)
    one = case(directory, '[spam]\nfolder = "../x"\n')
    assert "deliver check" in words(list(doctor.the_configuration(one)))
    one = case(directory, 'maildir = "Maildir"\n')
    assert levels(list(doctor.the_configuration(one))) == ["ok"]
    directory.chmod(0o700)  # as mkdir makes it under root's umask of 077
    assert f"chmod o+x {directory}" in words(list(doctor.the_configuration(one)))
    directory.chmod(0o755)
    Path(one.path).chmod(0o666)
    assert levels(list(doctor.the_configuration(one))) == ["problem"]
    Path(one.path).chmod(0o640)
    assert levels(list(doctor.the_configuration(one))) == ["warning"]
    Path(one.path).unlink()
    assert levels(list(doctor.the_configuration(one))) == ["problem"]


def test_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = tmp_path / "sock"
    monkeypatch.setenv("DELIVER_SOCKET", str(door))
    with servers.Scripted(tmp_path, servers.answer(b"220 host LMTP\r\n")) as lmtp:
        one = case(tmp_path, f'[service]\nlmtp = ["{lmtp.address}"]\n')
        assert "not running" in words(list(doctor.the_service(one)))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(door))
            assert levels(list(doctor.the_service(one))) == ["problem", "ok"]
            listener.listen()
            assert levels(list(doctor.the_service(one))) == ["ok", "ok"]


def test_a_service_of_another_user_is_no_problem(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its door has mode 0600, and each delivery of ours does its own work; nothing is to be removed there."""
    door = scratch / "sock"
    monkeypatch.setenv("DELIVER_SOCKET", str(door))
    one = case(scratch, "[service]\nlmtp = []\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()
        door.chmod(0)
        with tree.as_owner(scratch.stat()):
            found = list(doctor.the_service(one))
    assert (levels(found), "is not open to uid" in words(found)) == (["ok"], True)


def test_the_quarantine(tmp_path: Path) -> None:
    held = tmp_path / "held"
    one = case(tmp_path, f'[quarantine]\ndirectory = "{held}"\n')
    assert levels(list(doctor.the_quarantine(one))) == ["ok"]
    held.mkdir(mode=0o755)
    assert "chmod 700" in words(list(doctor.the_quarantine(one)))
    held.chmod(0o700)
    assert levels(list(doctor.the_quarantine(one))) == ["ok"]
    assert levels(list(doctor.the_quarantine(case(tmp_path, '[quarantine]\ndirectory = "/nowhere/held"\n')))) == [
        "problem"
    ]


@pytest.mark.parametrize(
    ("limit", "arguments", "level"),
    [
        ("deliver_destination_recipient_limit = 1", "--sender ${sender} --recipient ${recipient}", "ok"),
        ("", "--sender ${sender} --recipient ${recipient}", "problem"),
        ("deliver_destination_recipient_limit=1", "--recipient ${recipient}", "problem"),
    ],
)
def test_postfix(tmp_path: Path, limit: str, arguments: str, level: str) -> None:
    """As docs/install-postfix.md wants it."""
    (tmp_path / "etc" / "postfix").mkdir(parents=True)
    (tmp_path / "usr" / "sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/sendmail").symlink_to("/bin/true")
    (tmp_path / "etc/postfix/main.cf").write_text(f"{limit}\n")
    (tmp_path / "etc/postfix/master.cf").write_text(
        f"smtp inet n - y - - smtpd\n# x\ndeliver unix - n n - - pipe\n  flags=R user=vmail\n  argv=/usr/local/bin/deliver {arguments}\n"
        "dovecot unix - n n - - pipe\n  argv=/usr/lib/dovecot/deliver -d x\n"
    )
    assert levels(list(doctor.the_mail_server(case(tmp_path, 'maildir = "Maildir"\n')))) == [level]


@pytest.mark.parametrize(
    ("main", "level", "says"),
    [
        ("mailbox_command = /usr/local/bin/deliver", "ok", "mailbox_command"),
        ("mailbox_command=/usr/bin/maildrop -d ${USER}", "warning", "maildrop"),
        ("mailbox_command = /usr/bin/procmail", "warning", "procmail"),
        ("# mailbox_command = /usr/bin/procmail", "", ""),
        (
            "command_time_limit = 300s\nmailbox_command = /usr/local/bin/deliver",
            "problem",
            "command_time_limit = 600s",
        ),
        ("command_time_limit = 5m\nmailbox_command =\n\t/usr/local/bin/deliver", "problem", "kills"),
        ("command_time_limit = 10m\nmailbox_command = /usr/local/bin/deliver", "ok", ""),
    ],
)
def test_postfix_local(tmp_path: Path, main: str, level: str, says: str) -> None:
    """local(8) runs mailbox_command, kills it after command_time_limit, and bounces what it had."""
    (tmp_path / "etc/postfix").mkdir(parents=True)
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/sendmail").symlink_to("/bin/true")
    (tmp_path / "etc/postfix/main.cf").write_text(f"{main}\n")
    (tmp_path / "etc/postfix/master.cf").write_text("smtp inet n - y - - smtpd\n")
    found = list(doctor.the_mail_server(case(tmp_path, 'deadline = "5 min"\n')))
    assert levels(found) == ([level] if level else [])
    assert says in words(found)


def test_a_pipe_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """pipe(8): transport_time_limit, by default command_time_limit."""
    (tmp_path / "etc/postfix").mkdir(parents=True)
    (tmp_path / "etc/postfix/master.cf").write_text(
        "d unix - n n - - pipe\n  argv=/usr/local/bin/deliver --sender ${sender} --recipient ${recipient}\n"
    )
    one = case(tmp_path, 'deadline = "5 min"\n')
    for main, level in (("command_time_limit = 60s\nd_time_limit = 1h\n", "ok"), ("d_time_limit = 60\n", "problem")):
        (tmp_path / "etc/postfix/main.cf").write_text(f"d_destination_recipient_limit = 1\n{main}")
        assert next(doctor.the_mail_server(one)).level == level


@pytest.mark.parametrize(
    ("program", "level"), [("", "warning"), ("usr/lib/sendmail", ""), ("var/qmail/bin/qmail-queue", "")]
)
def test_who_sends_mail_on(tmp_path: Path, program: str, level: str) -> None:
    one = case(tmp_path, 'maildir = "Maildir"\n')
    if program:
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).symlink_to("/bin/true")
    assert levels(list(doctor.the_mail_server(one))) == [level] * bool(level)


def test_qmails_default_is_not_for_adopt(tmp_path: Path) -> None:
    """It looks at .qmail files alone."""
    control = tmp_path / "var" / "qmail" / "control"
    control.mkdir(parents=True)
    (control / "defaultdelivery").write_text("|maildrop\n")
    said = words(list(doctor.the_mail_server(case(tmp_path, 'maildir = "Maildir"\n'))))
    assert "write |/usr/local/bin/deliver in its place" in said


def test_the_command_asks_where_the_service_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed command has the line `socket=`, which make wrote."""
    monkeypatch.delenv("DELIVER_SOCKET", raising=False)
    command, door = tmp_path / "deliver", tmp_path / "sock"
    one = case(tmp_path, f'[service]\nsocket = "{door}"\nlmtp = []\n')._replace(command=str(command))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()
        command.write_text("#!/bin/sh\nhome=/x\nsocket=/run/other.sock\n")
        found = list(doctor.the_service(one))
        assert levels(found) == ["problem", "ok"]
        assert "asks at /run/other.sock" in found[0].words
        assert found[0].advice == f"make install SOCKET={door}"
        command.write_text(f"#!/bin/sh\nhome=/x\nsocket={door}\n")
        assert levels(list(doctor.the_service(one))) == ["ok"]


def test_a_log_of_roots_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a file that a trial as root made."""
    path = tmp_path / "deliver.log"
    one = case(tmp_path, f'[log]\nto = "{path}"\n')
    assert "is not there" in words(list(doctor.the_log(one)))
    path.touch(mode=0o600)
    real = os.stat(path)
    for uid, mode, wanted in ((0, 0o600, ["warning"]), (0, 0o660, []), (89, 0o600, [])):
        state = os.stat_result((0o100000 | mode, *real[1:4], uid, *real[5:]))
        with monkeypatch.context() as patched:
            patched.setattr("deliver.admin.doctor.os.stat", lambda _path, state=state: state)
            found = levels(list(doctor.the_log(one)))
        assert found == wanted, (uid, mode)


def test_oletools_are_installed_where_this_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never by our own name: the index has a stranger's package of it. The versions are the project's."""
    monkeypatch.setattr("deliver.admin.doctor.importlib.util.find_spec", lambda _name: None)
    (said,) = (one for one in doctor.the_attachments(case(tmp_path, "[attachments]\n")) if "oletools" in one.words)
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
    (wanted,) = project["project"]["optional-dependencies"]["macros"]
    assert said.advice.endswith(f"{sys.prefix}/bin/python -m pip install '{wanted}'")


@pytest.fixture
def home(scratch: Path) -> Path:
    home = scratch / "domains" / "you"
    for part in ("new", "cur", "tmp"):
        (home / "Maildir" / part).mkdir(parents=True)
    (home / "Maildir").chmod(0o700)
    return home


def examined(home: Path, text: str = 'maildir = "Maildir"\n') -> Iterator[tuple[str, Said]]:
    """What is said of the mailbox."""
    from deliver.admin.qmailfile import open_directory

    own(home)
    top = open_directory(str(home))
    return doctor_mailboxes.examine(case(home.parent.parent, text), top, "Maildir", str(home / "Maildir"))


def folder(home: Path, name: str) -> None:
    for part in ("new", "cur", "tmp"):
        (home / "Maildir" / f".{name}" / part).mkdir(parents=True)


def test_a_mailbox_that_is_well(home: Path) -> None:
    folder(home, "Spam")
    (home / "Maildir" / "courierimapsubscribed").write_text("INBOX.Spam\n")
    (home / "Maildir" / "subscriptions").write_text("V\t2\n\nSpam\n")
    (home / "Maildir" / "maildirsize").write_text("1000S\n           0            0\n")
    (home / ".qmail").write_text("|/usr/local/bin/deliver\n&a@example.net\n")
    assert list(examined(home)) == []


def test_each_fault_of_a_mailbox(home: Path) -> None:
    maildir = home / "Maildir"

    def said(name: str, word: str, text: str = 'maildir = "Maildir"\n') -> None:
        found = list(examined(home, text))
        assert [check for check, _ in found] == [name], found
        assert word in words([one for _, one in found]), found

    (maildir / "maildirsize").write_text("1000S\n         500            3\n")
    said("quota", "deliver quota recount")
    (maildir / "maildirsize").unlink()

    folder(home, "Spam")
    said("folders", "not subscribed in any list")
    (maildir / "subscriptions").write_text("V\t2\n\nSpam\n")
    (maildir / "courierimapsubscribed").write_text("INBOX.Spam-2019\n")
    said("folders", "not subscribed in courierimapsubscribed")
    (maildir / "courierimapsubscribed").write_text("INBOX.Spam\n")
    folder(home, "Junk")
    said("folders", "both .Spam and .Junk")
    for path in sorted((maildir / ".Junk").rglob("*"), reverse=True):
        path.rmdir()
    (maildir / ".Junk").rmdir()

    maildir.chmod(0o720)
    said("permissions", "chmod go-w")
    maildir.chmod(0o755)
    said("permissions", "everybody")
    maildir.chmod(0o700)
    (maildir / "deliver").mkdir(mode=0o700)
    (maildir / "deliver" / "quarantine").mkdir(mode=0o755)
    said("quarantine", "chmod 700")
    (maildir / "deliver" / "quarantine").chmod(0o700)
    (home / "mailfilter.toml").write_text("[[rule]]\nfil = 'A'\n")
    said("permissions", "deliver check --user")
    (home / "mailfilter.toml").write_text("[[rule]]\nfile = 'A'\n")
    (home / "mailfilter.toml").chmod(0o620)
    said("permissions", f"chmod 600 {home}/mailfilter.toml")  # what it says is sound
    (home / "mailfilter.toml").chmod(0)
    said("permissions", f"chmod 600 {home}/mailfilter.toml")
    (home / "mailfilter.toml").unlink()

    qmail = home / ".qmail"
    for text, word in (
        ("|/usr/local/bin/deliver\n./Maildir/\n", "delete all but one"),
        ("|maildrop /etc/mailfilter\n", "-> `deliver adopt`"),
        ("|maildrop /etc/mailfilter\n|/usr/local/bin/deliver\n", "-> `deliver adopt`"),
        ("|maildrop ./missing\n", "leaves it: there is no filter file ./missing"),
        ("|preline /usr/local/bin/deliver\n", "preline"),
        ("\n|/usr/local/bin/deliver\n", "blank"),
        (f"&{'x' * 600}@example.net\n", "500"),
    ):
        qmail.write_text(text)
        said(".qmail", word)
    qmail.write_text("|/usr/local/bin/deliver\n")
    qmail.chmod(0o702)
    found = words([one for _, one in examined(home)])
    assert "chmod o-w" in found
    assert "chmod a-x" in found
    qmail.chmod(0o600)
    home.chmod(0o1755)
    said(".qmail", "sticky")


def test_the_owners_own_spam_folder(home: Path) -> None:
    """It is the one that must be subscribed."""
    folder(home, "Mist")
    (home / "mailfilter.toml").write_text('[spam]\nfolder = "Mist"\n')
    text = '[user]\nmay-set = ["spam.folder"]\n'
    ((name, said),) = examined(home, text)
    assert (name, "Mist is not subscribed" in said.words) == ("folders", True)
    (home / "Maildir" / "subscriptions").write_text("V\t2\n\nMist\n")
    assert list(examined(home, text)) == []


def test_a_quarantine_of_the_site_that_the_owner_cannot_write(home: Path) -> None:
    """Root has made it; mail is delivered as another."""
    held = home.parent.parent / "held"
    held.mkdir(mode=0o500)
    ((name, said),) = examined(home, f'[quarantine]\ndirectory = "{held}"\n')
    assert (name, said.level, f"by uid {home.stat().st_uid}" in said.words) == ("quarantine", "problem", True)
    held.chmod(0o700)
    os.chown(held, home.stat().st_uid, -1)
    assert list(examined(home, f'[quarantine]\ndirectory = "{held}"\n')) == []


def test_mailboxes_on_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mailbox's own quarantine is on it; said once for the file system, not for each mailbox."""
    monkeypatch.setattr(doctor, "LOW_MEGABYTES", 10**12)
    ((name, said),) = examined(home)
    mount = next(str(path) for path in home.parents if path.is_mount())
    assert (name, said.words.startswith(f"{mount}: room for ")) == ("quarantine", True)


def test_a_log_that_the_owner_cannot_write(home: Path) -> None:
    log = home.parent.parent / "log"
    log.touch(mode=0o400)
    text = f'[log]\nto = "{log}"\n'
    ((name, said),) = examined(home, text)
    assert (name, said.level) == ("log", "problem")
    assert f"cannot be written by uid {home.stat().st_uid} " in said.words
    log.chmod(0o622)
    assert list(examined(home, text)) == []


def test_the_command(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1 if there is a problem, and only then; a line for each answer."""
    monkeypatch.setenv("DELIVER_SOCKET", str(tmp_path / "none"))
    own(home)
    site = tmp_path / "site.toml"
    site.write_text('maildir = "Maildir"\n')
    site.chmod(0o644)
    good = CliRunner().invoke(cli, ["doctor", "--config", str(site), str(home.parent)])
    assert good.exit_code == 0, good.output
    assert "1 mailbox, nothing to complain of" in good.output
    (home / ".qmail").write_text("|/usr/local/bin/deliver\n./Maildir/\n")
    bad = CliRunner().invoke(cli, ["doctor", "--config", str(site), "--json", str(home.parent)])
    assert bad.exit_code == 1
    found = [json.loads(line) for line in bad.output.splitlines()]
    assert [one["check"] for one in found if one["level"] == "problem"] == [".qmail"]
    assert (found[-1]["level"], "1 of 1 mailbox with" in found[-1]["text"]) == ("warning", True)


def test_a_line_without_a_maildir_is_a_problem(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All mail waits there (75), and no Maildir is there to be examined."""
    monkeypatch.setenv("DELIVER_SOCKET", str(tmp_path / "none"))
    site = tmp_path / "site.toml"
    site.write_text('maildir = "Maildir"\n')
    site.chmod(0o644)

    def said() -> tuple[int, str]:
        own(home)
        done = CliRunner().invoke(cli, ["doctor", "--config", str(site), str(home.parent)])
        return done.exit_code, done.output

    (home / ".qmail").write_text("|/usr/local/bin/deliver\n")
    assert (said()[0], "all mail waits" in said()[1]) == (0, False)
    (home / "Maildir").rename(home / "elsewhere")
    (home / "Maildir").symlink_to("elsewhere")
    assert (said()[0], f"{home}/Maildir is a symbolic link: all mail waits" in said()[1]) == (1, True)
    site.write_text('maildir = "Maildir/."\n')
    assert (said()[0], "all mail waits" in said()[1]) == (0, False)
    (home / "Maildir").unlink()
    assert (said()[0], "is not there, and is never made" in said()[1]) == (1, True)
    (home / ".qmail").write_text("|/usr/local/bin/deliver --maildir elsewhere\n")
    assert (said()[0], "all mail waits" in said()[1]) == (0, False)
    shutil.rmtree(home / "elsewhere")
    assert "there is no Maildir at or below it" in said()[1]


def test_a_check_that_breaks_is_a_problem(tmp_path: Path) -> None:
    def broken(_case: doctor.Case) -> Iterator[Said]:
        raise RuntimeError("oops")

    found = doctor.examine(case(tmp_path, 'maildir = "Maildir"\n'), [("one", broken)])
    assert [one.level for _, one in found] == ["problem"]


def test_attachments_need_libarchive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.the_attachments(case(tmp_path, ""))) == []
    one = case(tmp_path, "[attachments]\n")
    assert set(levels(list(doctor.the_attachments(one)))) == {"ok"}
    monkeypatch.setattr("deliver.content.libarchive._LIBRARY", "libarchive.so.999")
    assert "libarchive13" in words(list(doctor.the_attachments(one)))
    assert "problem" in levels(list(doctor.the_attachments(one)))


def test_a_quarantine_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that was mounted again without writing after an error, as statvfs(3) tells."""
    held = tmp_path / "held"
    held.mkdir(mode=0o700)
    real = os.statvfs(held)
    read_only = os.statvfs_result((*real[:8], real.f_flag | os.ST_RDONLY, *real[9:]))
    monkeypatch.setattr("deliver.admin.doctor.os.statvfs", lambda _path: read_only)
    (said,) = doctor.the_quarantine(case(tmp_path, f'[quarantine]\ndirectory = "{held}"\n'))
    assert said.level == "problem"
    assert "read-only" in said.words


def test_a_quarantine_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` says it, too, as a warning: mail with a virus will wait."""
    held = tmp_path / "held"
    held.mkdir(mode=0o700)
    one = case(tmp_path, f'[quarantine]\ndirectory = "{held}"\n')
    monkeypatch.setattr(doctor, "LOW_MEGABYTES", 10**12)
    assert levels(list(doctor.the_quarantine(one))) == ["problem"]
    done = CliRunner().invoke(cli, ["check", one.path])
    assert done.exit_code == 0
    assert f"{one.path}:2: " in done.output
    assert "such mail waits" in done.output
