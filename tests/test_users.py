"""Whose Maildir it is, and above all: who is nobody, and when nobody can tell."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deliver.errors import Deferred
from deliver.settings import Users
from deliver.users import Found, look_up

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """vpopmail's: DOMAIN/USER/Maildir, and the file vpasswd beside the users."""
    for user in ("ann", "anna-maria", "joe"):
        (tmp_path / "example.org" / user / "Maildir").mkdir(parents=True)
    (tmp_path / "example.org" / "vpasswd").touch()
    return tmp_path


@pytest.fixture
def users(domains: Path) -> Users:
    """The template of the example configuration."""
    return Users(maildir=f"{domains}/{{domain}}/{{user}}/Maildir")


@pytest.mark.parametrize(
    ("address", "user", "extension"),
    [
        ("ann@example.org", "ann", ""),
        ("ANN@Example.ORG", "ann", ""),
        ("ann+Lists@example.org", "ann", "Lists"),
        ("ann-Lists.qmail@example.org", "ann", "Lists.qmail"),
        ("ann+a+b@example.org", "ann", "a+b"),
        ("anna-maria@example.org", "anna-maria", ""),
        ("anna-maria-x@example.org", "anna-maria", "x"),
        ("ann+@example.org", "ann", ""),
        ("ann-" + "x" * 300 + "@example.org", "ann", "x" * 300),
        ("ann+list-2026-11-28-a-b-c-d-e-f-g@example.org", "ann", "list-2026-11-28-a-b-c-d-e-f-g"),
        ("anÄ-ann@example.org", "", ""),
        ("nobody@example.org", "", ""),
        ("-ann@example.org", "", ""),
        ("+ann@example.org", "", ""),
        ("ann.x@example.org", "", ""),
        ("vpasswd@example.org", "", ""),
        ("{domain}@example.org", "", ""),
        ("x" * 300 + "@example.org", "", ""),
    ],
)
def test_template(users: Users, domains: Path, address: str, user: str, extension: str) -> None:
    """dot-qmail(5): the longest user that there is; the rest is an extension, in its own case."""
    wanted = Found(str(domains / "example.org" / user / "Maildir"), extension) if user else None
    assert look_up(users, address) == wanted


def test_a_user_may_be_called_as_a_placeholder(users: Users, domains: Path) -> None:
    (domains / "example.org" / "{domain}").mkdir()
    found = look_up(users, "{domain}@example.org")
    assert found == Found(str(domains / "example.org" / "{domain}" / "Maildir"), "")


def test_a_domain_that_is_not_there_may_be_a_disk_that_is_not_mounted(users: Users, domains: Path) -> None:
    """design.md section 5: 550 only where the directory that would hold the user exists."""
    with pytest.raises(Deferred, match=r"other\.example is not there"):
        look_up(users, "ann@other.example")
    shutil.rmtree(domains / "example.org")
    with pytest.raises(Deferred):
        look_up(users, "ann@example.org")


def test_a_domain_that_is_no_directory(users: Users, domains: Path) -> None:
    (domains / "other.example").touch()
    with pytest.raises(Deferred, match="Not a directory"):
        look_up(users, "ann@other.example")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere; needs an ordinary user")
def test_a_domain_that_we_may_not_look_into(users: Users, domains: Path) -> None:
    (domains / "example.org").chmod(0)
    try:
        with pytest.raises(Deferred, match="Permission denied"):
            look_up(users, "nobody@example.org")
    finally:
        (domains / "example.org").chmod(0o700)


def test_a_user_behind_a_link_to_a_disk_that_is_not_mounted(users: Users, domains: Path) -> None:
    (domains / "example.org" / "eve").symlink_to(domains / "disk2" / "eve")
    with pytest.raises(Deferred, match="eve leads to nothing"):
        look_up(users, "eve+x@example.org")
    (domains / "disk2" / "eve").mkdir(parents=True)
    assert look_up(users, "eve+x@example.org") == Found(str(domains / "example.org" / "eve" / "Maildir"), "x")


@pytest.mark.parametrize("name", ["{user}@{domain}", "{recipient}", "{recipient}/Maildir"])
def test_the_users_directory_may_have_the_whole_address_as_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "ann@example.org").mkdir()
    users = Users(maildir=f"{tmp_path}/{name}")
    maildir = str(tmp_path / name.replace("{user}@{domain}", "{recipient}").replace("{recipient}", "ann@example.org"))
    assert look_up(users, "ann+x@example.org") == Found(maildir, "x")
    assert look_up(users, "joe@example.org") is None


def test_passwd() -> None:
    """Root reads no mail; users' names are small."""
    ordinary = next(one for one in pwd.getpwall() if one.pw_uid and one.pw_name.isalpha() and one.pw_name.islower())
    maildir = os.path.join(ordinary.pw_dir, "Maildir")
    users = Users(passwd=True)
    assert look_up(users, f"{ordinary.pw_name}@example.org") == Found(maildir, "")
    assert look_up(users, f"{ordinary.pw_name.upper()}+Lists@example.org") == Found(maildir, "Lists")
    assert look_up(users, "no-such-user-here@example.org") is None
    assert look_up(users, "root@example.org") is None


def test_passwd_that_cannot_be_read_is_not_nobody() -> None:
    """Python's pwd says "not found" of both. Without descriptors libc cannot open /etc/passwd (EMFILE)."""
    script = (
        "import ctypes, os, pwd, resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "from deliver.settings import Users; from deliver.users import look_up; from deliver.errors import Deferred\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); users = Users(passwd=True)\n"
        "try: print(look_up(users, 'daemon@example.org'))\n"
        "except Deferred as error: print(error.line)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, CHECKOUT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("4.3.0 Cannot look up the user\n", "")


def command(tmp_path: Path, body: str) -> Users:
    """A lookup by a script, which gets the address."""
    script = tmp_path / "lookup"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return Users(command=(str(script), "-d", "{recipient}"))


VUSERINFO = """
echo "$2" >>"${0%/*}/asked"
case $2 in
ann@example.org) echo /home/vpopmail/domains/example.org/ann ;;
*) echo "no such user $2"; exit 255 ;;
esac
"""


def test_command(tmp_path: Path) -> None:
    """As vpopmail's vuserinfo -d: the user's directory, or "no such user" and 255."""
    users = command(tmp_path, VUSERINFO)
    wanted = Found("/home/vpopmail/domains/example.org/ann/Maildir", "Lists")
    assert look_up(users, "ANN+Lists@Example.org") == wanted
    assert (tmp_path / "asked").read_text().split() == ["ann+lists@example.org", "ann@example.org"]
    assert look_up(users, "joe-x@example.org") is None


@pytest.mark.parametrize("body", ["exit 67", "echo 'No such user.' >&2; exit 1"])
def test_command_says_nobody(tmp_path: Path, body: str) -> None:
    """EX_NOUSER of sysexits.h, or in words."""
    assert look_up(command(tmp_path, body), "ann@example.org") is None


@pytest.mark.parametrize(
    "body",
    [
        "exit 1",
        "echo 'Traceback: no database' >&2; exit 1",
        "exit 0",
        "echo relative/path",
        "echo /one; echo /two",
        "echo /home/ann; exit 111",
        "kill -9 $$",
        r"printf '\377\n'; exit 3",
        # vpopmail's vmysql.c and vuserinfo.c, where the query fails:
        "echo 'vmysql: sql error[3]: Lost connection to MySQL server' >&2; echo 'no such user ann@example.org'; exit 255",
    ],
)
def test_command_could_not_tell(tmp_path: Path, body: str) -> None:
    """A database that is down must not bounce mail."""
    with pytest.raises(Deferred) as caught:
        look_up(command(tmp_path, body), "ann@example.org")
    assert caught.value.line == "4.3.0 Cannot look up the user"


def test_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Deferred, match="No such file"):
        look_up(Users(command=(str(tmp_path / "nothing"),)), "ann@example.org")


def test_command_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliver.users.TIMEOUT", 0.2)
    with pytest.raises(Deferred, match="timed out"):
        look_up(command(tmp_path, "exec sleep 60"), "ann@example.org")


def test_an_address_is_never_an_option_of_the_commands(tmp_path: Path) -> None:
    """Bad input 21: anybody may write to -D@example.org."""
    assert look_up(command(tmp_path, VUSERINFO), "-ann@example.org") is None
    assert not (tmp_path / "asked").exists()


def test_placeholders_are_filled_once(tmp_path: Path) -> None:
    users = command(tmp_path, VUSERINFO)
    assert look_up(users, "{recipient}@example.org") is None
    assert (tmp_path / "asked").read_text() == "{recipient}@example.org\n"


def test_an_empty_table_is_a_failure() -> None:
    with pytest.raises(Deferred, match=r"\[users\] has none"):
        look_up(Users(), "ann@example.org")
