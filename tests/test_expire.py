"""Old mail leaves as [expire] says; the quota file is right; nothing else is touched. And `deliver quota`."""

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from main_job import own

from deliver import config as configuration
from deliver.admin import expire as work
from deliver.admin.qmailfile import open_directory
from deliver.commands import cli
from deliver.settings import Config, Expire, Users

DAY = 86400
NOW = 1_800_000_000.0


class Mailbox:
    """A Maildir of the unprivileged user with a quota of 1 MB."""

    def __init__(self, top: Path, name: str = "you") -> None:
        self.top = top
        self.home = top / name
        self.maildir = self.home / "Maildir"
        self.sizes = 0
        self.number = 0
        for folder in ("", ".Sent", ".Trash", ".Spam", ".Other"):
            for part in ("new", "cur", "tmp"):
                (self.maildir / folder / part).mkdir(parents=True)

    def message(self, where: str, days: float, info: str = "", size: int = 100) -> Path:
        """One of that age by its mtime, counted from NOW."""
        self.number += 1
        path = self.maildir / where / f"{self.number}.P1.host,S={size}{info}"
        path.write_bytes(b"x" * size)
        os.utime(path, (NOW - days * DAY, NOW - days * DAY))
        return path

    def expire(self, settings: Expire, now: float = NOW, **more: bool) -> work.Result:
        """As the command does for one Maildir."""
        own(self.top)
        top = open_directory(str(self.top))
        try:
            return work.expire(
                top, f"{self.home.name}/Maildir", str(self.maildir), Config(expire=settings), now, **more
            )
        finally:
            os.close(top)


@pytest.fixture
def mailbox(scratch: Path) -> Mailbox:
    return Mailbox(scratch)


NEVER = Expire(read=0, unread=0, sent=0, trash=0, spam=0)  # type: ignore[arg-type]


def only(**spans: float) -> Expire:
    return Expire(**{**dict.fromkeys(("read", "unread", "sent", "trash", "spam"), 0.0), **spans})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "where", "info"),
    [
        ("read", "cur", ":2,S"),
        ("unread", "new", ""),
        ("unread", "cur", ":2,"),
        ("unread", "cur", ":2,F"),
        ("sent", ".Sent/cur", ":2,S"),
    ],
)
def test_by_arrival(mailbox: Mailbox, kind: str, where: str, info: str) -> None:
    old = mailbox.message(where, 31, info)
    young = mailbox.message(where, 29, info)
    others = [mailbox.message(*one) for one in (("tmp", 99), (".Other/cur", 99, ":2,S"), (".Spam/new", 99))]
    result = mailbox.expire(only(**{kind: 30 * DAY}))
    assert (result.why, result.deleted) == ("", {kind: work.Tally(1, 100)})
    assert not old.exists()
    assert young.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(("kind", "folder"), [("trash", ".Trash"), ("spam", ".Spam")])
def test_by_the_day_it_came_into_the_folder(mailbox: Mailbox, kind: str, folder: str) -> None:
    """A message of last year that was deleted today stays for its days in Trash: ctime, as Courier's EMPTYTRASH."""
    message = mailbox.message(f"{folder}/cur", 400, ":2,S")
    real = time.time()
    assert mailbox.expire(only(**{kind: 14 * DAY}), real + 13 * DAY).deleted == {}
    assert mailbox.expire(only(**{kind: 14 * DAY}), real + 15 * DAY).deleted == {kind: work.Tally(1, 100)}
    assert not message.exists()


def test_the_domains_own_spam_folder(mailbox: Mailbox) -> None:
    """What deliveries go by, this goes by as well."""
    domain = mailbox.top.name  # the tree is /tmp/DOMAIN/USER/Maildir
    users = Users(maildir=f"{mailbox.top.parent}/{{domain}}/{{user}}/Maildir")
    config = Config(expire=only(spam=14 * DAY), domain_rules=f"{mailbox.top}/{{domain}}.toml", users=users)
    (mailbox.top / f"{domain}.toml").write_text('[spam]\nfolder = "Other"\n')
    mailbox.message(".Other/cur", 99)
    mailbox.message(".Spam/cur", 99)
    own(mailbox.top)
    top = open_directory(str(mailbox.top))
    try:
        found = work.expire(top, "you/Maildir", str(mailbox.maildir), config, time.time() + 99 * DAY)
    finally:
        os.close(top)
    assert (found.why, found.deleted) == ("", {"spam": work.Tally(1, 100)})
    assert not list((mailbox.maildir / ".Other" / "cur").iterdir())


def test_zero_is_for_ever(mailbox: Mailbox) -> None:
    for where in ("new", "cur", ".Sent/cur", ".Trash/cur", ".Spam/cur"):
        mailbox.message(where, 9999, ":2,S")
    assert mailbox.expire(NEVER, time.time() + 9999 * DAY).deleted == {}


def test_the_defaults_are_the_toasters() -> None:
    """toaster-watcher.conf 5.54: maildir_clean_Read=0, _Unread=365, _Sent=180, _Trash=14, _Spam=14."""
    days = {name: getattr(Expire(), name) / DAY for name in work.CLASSES}
    assert days == {"read": 0, "unread": 365, "sent": 180, "trash": 14, "spam": 14}


def test_the_quota_file_is_right_afterwards(mailbox: Mailbox) -> None:
    mailbox.message("cur", 40, ":2,S", 1000)
    mailbox.message("cur", 1, ":2,S", 300)
    mailbox.message(".Trash/cur", 1, ":2,S", 5000)
    quota = mailbox.maildir / "maildirsize"
    quota.write_text("1000000S,100C\n        1300            2\n")
    quota.chmod(0o640)
    mailbox.expire(only(read=30 * DAY))
    assert quota.read_text().split() == ["1000000S,100C", "300", "1"]
    assert quota.stat().st_mode & 0o777 == 0o640
    assert quota.stat().st_uid == mailbox.maildir.stat().st_uid


def test_the_quota_file_is_right_where_a_folder_cannot_be_written(mailbox: Mailbox) -> None:
    """What went before the failure counts no more."""
    mailbox.message("cur", 40, ":2,S", 1000)
    mailbox.message(".Sent/cur", 40, ":2,S", 300)
    (mailbox.maildir / "maildirsize").write_text("1000000S\n        1300            2\n")
    (mailbox.maildir / ".Sent" / "cur").chmod(0o500)
    result = mailbox.expire(only(read=30 * DAY, sent=30 * DAY))
    (mailbox.maildir / ".Sent" / "cur").chmod(0o700)
    assert (result.why, result.deleted) == ("Permission denied", {"read": work.Tally(1, 1000)})
    assert (mailbox.maildir / "maildirsize").read_text().split() == ["1000000S", "300", "1"]


def test_dry_run_counts_and_deletes_nothing(mailbox: Mailbox) -> None:
    old = mailbox.message("cur", 40, ":2,S")
    result = mailbox.expire(only(read=30 * DAY), dry_run=True)
    assert result.deleted == {"read": work.Tally(1, 100)}
    assert old.exists()


@pytest.mark.parametrize(
    ("pattern", "spared"),
    [
        ("*/you", True),
        ("*/other", False),
        ("{top}/you", True),
        ("{top}/you/", True),
        ("{top}/you/Maildir", True),
        ("{top}/*", True),
        ("{top}/y", False),
        ("{link}/you", True),  # as /home is a link to /usr/home on some hosts
        ("{link}/y*", True),
        ("{link}/other", False),
    ],
)
def test_exceptions(mailbox: Mailbox, tmp_path: Path, pattern: str, spared: bool) -> None:
    old = mailbox.message("cur", 40, ":2,S")
    (tmp_path / "link").symlink_to(mailbox.top)
    pattern = pattern.format(top=mailbox.top, link=tmp_path / "link")
    result = mailbox.expire(Expire(read=30 * DAY, apart=(pattern,)))  # type: ignore[arg-type]
    assert result.spared == spared
    assert old.exists() == spared


@pytest.mark.parametrize("table", ["expire", "learn"])
def test_an_exception_that_spares_nobody_is_an_error(table: str) -> None:
    found = configuration.parse(f'[{table}]\nexcept = ["boss@example.org", "*/boss"]\n'.encode(), "f")[1]
    assert [(problem.path, problem.warning) for problem in found] == [((table, "except"), False)]


def test_links_are_not_followed(mailbox: Mailbox) -> None:
    outside = mailbox.top / "outside"
    (outside / "cur").mkdir(parents=True)
    precious = outside / "cur" / "1.P1.host:2,S"
    precious.write_text("x")
    os.utime(precious, (0, 0))
    (mailbox.maildir / ".Sent" / "cur").rmdir()
    (mailbox.maildir / ".Sent" / "cur").symlink_to(outside / "cur")
    linked = mailbox.maildir / "cur" / "2.P1.host:2,S"
    linked.symlink_to(precious)
    os.utime(linked, (0, 0), follow_symlinks=False)
    assert mailbox.expire(only(read=DAY, sent=DAY)).deleted == {}
    assert precious.exists()
    assert linked.is_symlink()


def test_the_command_sums_up(mailbox: Mailbox, scratch: Path) -> None:
    other = Mailbox(scratch, "other")
    for one in (mailbox, other):
        one.message("new", 4000)  # real time is not NOW: old enough by any clock
        own(scratch)
    config = scratch / "site.toml"
    config.write_text("[expire]\n")
    result = CliRunner().invoke(cli, ["expire", "--config", str(config), "--json", str(scratch)])
    assert result.exit_code == 0, result.output
    *_, summary = map(json.loads, result.output.splitlines())
    assert summary["mailboxes"] == 2
    assert summary["deleted"]["unread"] == {"messages": 2, "size": 200}
    config.write_text("deadline = '5 min'\n")
    result = CliRunner().invoke(cli, ["expire", "--config", str(config), str(scratch)])
    assert result.exit_code == 1
    assert "[expire]" in result.output


def test_quota_show_and_recount(mailbox: Mailbox) -> None:
    mailbox.message("cur", 1, ":2,S", 700)
    quota = mailbox.maildir / "maildirsize"
    quota.write_text("1000S\n         100            1\n")
    own(mailbox.top)
    shown = CliRunner().invoke(cli, ["quota", "show", str(mailbox.maildir)])
    assert "100 of 1000 bytes and 1 messages in use, 10 %; on disk are 700 bytes and 1 messages" in shown.output
    assert quota.read_text().split() == ["1000S", "100", "1"]
    counted = CliRunner().invoke(cli, ["quota", "recount", "--json", str(mailbox.maildir)])
    said = json.loads(counted.output)
    assert (said["size"], said["count"], said["percent"], said["agrees"]) == (700, 1, 70, True)
    assert quota.read_text().split() == ["1000S", "700", "1"]
    assert quota.stat().st_uid == mailbox.maildir.stat().st_uid
    assert CliRunner().invoke(cli, ["quota", "show", str(mailbox.home)]).exit_code == 1
