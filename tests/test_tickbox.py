"""enable, disable, status: the .qmail that qmailadmin's user.c writes for the same ticks."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deliver.admin import tickbox
from deliver.commands import cli

AUTORESPOND = "| /usr/bin/autorespond 86400 3 /x/vacation/message /x/vacation\n"
COMMAND = Path(__file__).resolve().parent.parent / "bin" / "deliver"
OURS = f"|{COMMAND}\n"
STOPPING = f"|{COMMAND} --stop-after-spam\n"


class Site:
    """A vpopmail tree that [users] names, and a user."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "domains" / "example.org" / "you"
        (self.home / "Maildir").mkdir(parents=True)
        self.config = directory / "site.toml"
        self.config.write_text(f'[users]\nmaildir = "{directory}/domains/{{domain}}/{{user}}/Maildir"\n')
        self.qmail = self.home / ".qmail"

    def run(self, command: str, address: str = "you@example.org", *, code: int = 0) -> dict[str, str]:
        """What it says of the one address."""
        words = [command, "--config", str(self.config), "--json", address]
        result = CliRunner().invoke(cli, [*words, *(["--command", str(COMMAND)] if command == "enable" else [])])
        assert result.exit_code == code, result.output
        said: dict[str, str] = json.loads(result.output)
        return said


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def maildir(site: Site) -> str:
    return f"{site.home}/Maildir/\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", OURS),
        ("MAILDIR", OURS),
        ("./Maildir/\n", OURS),
        ("&a@example.net\nMAILDIR", f"&a@example.net\n{OURS}"),
        (
            f"|/usr/bin/notify\n&a@example.net\nMAILDIR{AUTORESPOND}",
            f"|/usr/bin/notify\n&a@example.net\n{STOPPING}{AUTORESPOND}",
        ),
        ("|preline /usr/local/bin/maildrop /etc/mailfilter\n", OURS),
        (OURS, OURS),
    ],
)
def test_enable(site: Site, before: str, after: str) -> None:
    site.qmail.write_text(before.replace("MAILDIR", maildir(site)))
    assert site.run("enable")["state"] == "enabled"
    assert site.qmail.read_text() == after
    assert site.run("status")["state"] == "enabled"


def test_enable_makes_the_file(site: Site) -> None:
    assert site.run("status")["state"] == "disabled"
    site.run("enable")
    assert site.qmail.read_text() == OURS
    assert site.qmail.stat().st_mode & 0o777 == 0o600
    assert site.qmail.stat().st_uid == site.home.stat().st_uid


@pytest.mark.parametrize(
    "text",
    [
        "&a@example.net\n",  # qmailadmin: forward without a copy has neither
        "# delete\n",
        f"{OURS}./Maildir/\n",
        "|/usr/lib/dovecot/dovecot-lda\n",
        "|preline /usr/local/bin/maildrop ./mine\n",
    ],
)
def test_enable_refuses_what_would_change_where_mail_goes(site: Site, text: str) -> None:
    site.qmail.write_text(text)
    assert site.run("enable", code=1)["error"]
    assert site.qmail.read_text() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OURS, None),  # "a file with only the Maildir line is removed"
        (f"&a@example.net\n{OURS}", "&a@example.net\nMAILDIR"),
        (f"{STOPPING}{AUTORESPOND}", f"MAILDIR{AUTORESPOND}"),
        ("./Maildir/\n", "./Maildir/\n"),
    ],
)
def test_disable(site: Site, before: str, after: str | None) -> None:
    site.qmail.write_text(before)
    assert site.run("disable")["state"] == "disabled"
    assert (site.qmail.read_text() if site.qmail.exists() else None) == (
        after and after.replace("MAILDIR", maildir(site))
    )


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("|maildrop\n", "maildrop"),
        (f"{OURS}|maildrop\n", "twice"),
        ("&a@b\n", "nothing-stored"),
        ("|/usr/bin/thing\n", "unknown"),
        ("./Maildir/\n", "disabled"),
    ],
)
def test_status(site: Site, text: str, state: str) -> None:
    site.qmail.write_text(text)
    assert site.run("status")["state"] == state


@pytest.mark.parametrize(
    "address", ["nobody@example.org", "you@else.example", "../you@example.org", "you-x@example.org", "@x"]
)
def test_who_is_not_there(site: Site, address: str) -> None:
    assert site.run("status", address, code=1)["error"]


def test_a_link_in_place_of_the_file_is_not_followed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("./Maildir/\n")
    site.qmail.symlink_to(tmp_path / "other")
    site.run("enable", code=1)
    assert (tmp_path / "other").read_text() == "./Maildir/\n"


def test_a_command_that_is_not_there_is_refused(site: Site, tmp_path: Path) -> None:
    """All mail would wait."""
    words = ["enable", "--config", str(site.config), "--command", f"{tmp_path}/deliver", "you@example.org"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1
    assert f'there is no program "{tmp_path}/deliver"' in result.output
    assert not site.qmail.exists()


def test_without_users_it_says_where_it_looked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of a setting that nobody made."""
    monkeypatch.setattr(tickbox, "_vpopmails_template", lambda: f"{tmp_path}/none/{{domain}}/{{user}}/Maildir")
    site.config.write_text('maildir = "Maildir"\n')
    error = site.run("status", code=1)["error"]
    assert f"{tmp_path}/none/example.org is not there; if the domains lie elsewhere" in error
    assert "[users] maildir: " not in error
    site.config.write_text(f'[users]\nmaildir = "{tmp_path}/none/{{domain}}/{{user}}/Maildir"\n')
    assert "[users] maildir: " in site.run("status", code=1)["error"]


def test_disable_knows_the_way_out_of_maildrop(site: Site) -> None:
    site.qmail.write_text("|maildrop\n")
    assert "`deliver adopt` first" in site.run("disable", code=1)["error"]
