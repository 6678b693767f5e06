"""The configuration: every error at once and with its line; the example says the defaults; users get what they may."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from deliver import config
from deliver.errors import NotConfigured
from deliver.settings import TABLES, Attachments, Clamd, Config, Expire, Personal, Spamd

EXAMPLE = Path(__file__).parent.parent / "mailfilter.example.toml"


def check(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`deliver check` as a process."""
    command = [sys.executable, "-m", "deliver", "check", *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_says_the_defaults() -> None:
    """Every key of it has the value that the code has without it."""
    settings, problems = config.read(str(EXAMPLE))
    assert problems == []
    assert settings is not None
    expected = Config(clamd=Clamd(), spamd=Spamd(), attachments=Attachments(), expire=Expire())
    for name in Config.__struct_fields__:
        if name not in ("rules", "quota"):
            assert getattr(settings, name) == getattr(expected, name), name
    assert msgspec.structs.replace(settings.quota, warning="") == msgspec.structs.replace(expected.quota, warning="")
    assert settings.quota.warning.split() == expected.quota.warning.split()


@pytest.mark.parametrize("table", ["", *TABLES])
def test_the_example_has_every_key(table: str) -> None:
    """A key that is not there cannot be found by an admin. That each has its default, the test above says."""
    if table in NO_DEFAULT:
        text = EXAMPLE.read_text()
        assert re.search(rf"(?m)^(#   )?\[{table}\]$", text)
        assert all(re.search(rf"(?m)^#.*\b{key} = ", text) for key in NO_DEFAULT[table])
        return
    document = tomllib.loads(EXAMPLE.read_text())
    kind = TABLES[table] if table else Config
    keys = {field.encode_name for field in msgspec.structs.fields(kind)}
    if not table:
        document = {key: value for key, value in document.items() if not isinstance(value, dict | list)}
        keys -= {*TABLES, "rules", "scanners", "programs", "lists"}
    assert set(document if not table else document[table]) == keys


NO_DEFAULT = {"users": ("maildir", "command", "passwd")}
"""Tables that stand in the example as a comment, since a wrong guess would harm."""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[service]\nlmtp = ["unix:/run/lmtp"]\n', 2),
        ("[service]\nlmtp = []\n", 0),
        ("[service]\nmessages = 5\n", 0),
        ("[log]\n", 0),
        ('[service]\nlmtp = ["unix:/run/lmtp"]\n[users]\npasswd = true\n', 0),
    ],
)
def test_a_door_for_lmtp_that_leads_to_nobody_is_a_warning(tmp_path: Path, text: str, line: int) -> None:
    """Without [users] every recipient has 451; a door that is open by default only is no mistake."""
    path = tmp_path / "site.toml"
    path.write_text(text)
    done = check(path)
    said = [one for one in done.stdout.splitlines() if "without [users]" in one]
    words = "warning: lmtp: without [users] every recipient by LMTP is told to wait (451); write [users], or lmtp = []"
    assert said == [f"{path}:{line}: {words}"] * bool(line)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[log]\nto = "deliver.log"\n', 2, 'to: expected "syslog", "stderr" or the whole path of a file, not "deliver.log"'),
        ("[spam]\nrequired-score = 8\ndelete-above = 5\n", 3, "delete-above: is below required-score, 8: all spam is"),
        ("[clamd]\nmax-size = 0\n", 2, "max-size: with 0 no message at all is scanned"),
        ('deadline = "1 min"\n[spamd]\n', 2, "timeout: is not below `deadline`, 60 s: should it hang, mail waits, what"),
        ('[quarantine]\ndirectory = "{maildir}/.Held"\n', 2, "directory: IMAP servers show a directory whose name"),
        ('[attachments]\nforbidden = ["exe"]\n', 2, 'forbidden: "exe" is a file of just this name; did you mean "*.exe"?'),
    ],
)
def test_what_works_in_another_way_than_meant_is_a_warning(tmp_path: Path, text: str, line: int, words: str) -> None:
    """Mail is delivered all the same."""
    path = tmp_path / "site.toml"
    path.write_text(text)
    done = check(path)
    assert done.stdout.startswith(f"{path}:{line}: warning: {words}")
    assert (done.stdout.count("warning: "), done.returncode) == (1, 0)


def test_a_number_in_quotes_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[spam]\nrequired-score = "5"\n[forward]\nsender = "x"\n[[rul]]\n[foo]\n')
    assert [line.split(":", 2)[2] for line in check(path).stdout.splitlines()] == [
        ' required-score: expected "scanner" or a number without quotes, such as 5.0, got "5"',
        ' sender: expected "keep" or an array in [], got "x"',
        ' rul: the configuration has no key of this name; did you mean "rule"?',
        f" foo: the configuration has no table of this name (there are {', '.join(TABLES)}, rule, programs, lists, scanner)",
    ]


def test_every_error_is_reported_with_its_line(tmp_path: Path) -> None:
    """FILE:LINE: words, in order, with a suggestion."""
    path = tmp_path / "site.toml"
    path.write_text(
        'maildr = "x"\n'
        "[clamd]\n"
        'max-size = "25 megs"\n'
        'on-virus = "kill"\n'
        'address = ["unix:/a", "nowhere"]\n'
        "[spam]\n"
        "delete-above = 'lots'\n"
        'folder = "../x"\n'
        "[spamm]\n"
        "[[rule]]\n"
        'file = "A"\n'
        "[[rule]]\n"
        'file = "B"\n'
        "[rule.when]\n"
        'sbject = "x"\n'
        'header = { "X-A" = { regex = "(" } }\n'
    )
    done = check(path)
    assert done.returncode == 1
    lines = [int(line.split(":")[1]) for line in done.stdout.splitlines() if "warning:" not in line]
    assert lines == [1, 3, 4, 5, 7, 8, 9, 15, 16]
    assert 'did you mean "maildir"?' in done.stdout
    assert 'did you mean "subject"?' in done.stdout
    assert 'did you mean "spam"?' in done.stdout


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("a = 1\na = 2\n", 2, "overwrite"),
        ("\n[clamd\n", 2, "TOML"),
        ("\ufeffmaildir = 'x'\n", 1, "TOML"),
        ("deadline = '20 min'\n", 1, "1000 s"),
        ("clamd = 1\n", 1, "[clamd]"),
        ("rule = 1\n", 1, "rule"),
        ("[quota]\nlimit = 'many'\n", 2, "limit"),
        ("[quota]\nwarn-at = 101\n", 2, "warn-at"),
    ],
)
def test_one_error(tmp_path: Path, text: str, line: int, words: str) -> None:
    """Each says where and what."""
    path = tmp_path / "site.toml"
    path.write_text(text)
    done = check(path)
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"{path}:{line}: ")
    assert words in first


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    """And a delivery without one is NotConfigured."""
    done = check(tmp_path / "none.toml")
    assert done.returncode == 1
    assert "mailfilter.example.toml" in done.stdout
    with pytest.raises(NotConfigured):
        config.load(str(tmp_path / "none.toml"))


def test_a_good_file_says_so(tmp_path: Path) -> None:
    """0 errors, exit 0; a warning is none."""
    path = tmp_path / "site.toml"
    path.write_text('[[rule]]\nfile = "A"\n[rule.when]\nfrom = "@x.org"\n')
    done = check(path)
    assert done.returncode == 0
    assert f"{path}:4: warning: " in done.stdout
    assert '"*@x.org"' in done.stdout


@pytest.mark.parametrize("user", [False, True])
def test_a_rule_that_asks_for_what_is_removed_is_a_warning(tmp_path: Path, *, user: bool) -> None:
    """A header condition on X-Spam-Flag never holds with [spamd], since the line is removed and ours is written later."""
    site, path = tmp_path / "site.toml", tmp_path / "mailfilter.toml"
    rule = '[[rule]]\nfile = "A"\n[rule.when]\nheader = { "X-Spam-Flag" = "YES" }\n'
    site.write_text('maildir = "Maildir"\n[spamd]\n' + rule * (not user))
    path.write_text(rule)
    done = check(path, "--user", "--config", str(site)) if user else check(site)
    assert done.returncode == 0
    assert "warning: no message can match: x-spam-flag is taken out of what arrives" in done.stdout
    assert "write spam = true" in done.stdout
    site.write_text('maildir = "Maildir"\n' + rule * (not user))  # without [spamd] the line is an upstream scanner's
    assert "warning:" not in (check(path, "--user", "--config", str(site)) if user else check(site)).stdout


def personal(path: Path, site: str = "") -> Personal:
    """A user's file as a delivery reads it."""
    settings = config.parse(f"maildir = 'Maildir'\n{site}".encode(), "site.toml")[0]
    assert settings is not None
    return config.personal(str(path), settings, os.geteuid())


def test_a_user_may_set_what_the_site_allows(tmp_path: Path) -> None:
    """The threshold by default; more if [user] may-set says so; nothing else."""
    path = tmp_path / "mailfilter.toml"
    path.write_text("[spam]\nrequired-score = 3\n")
    own = personal(path)
    assert own.error == ""
    assert own.spam is not None
    assert own.spam.required_score == 3
    path.write_text('[spam]\nfolder = "Junk"\n')
    assert "only the site sets this" in personal(path).error
    own = personal(path, '[user]\nmay-set = ["spam.folder"]\n')
    assert own.spam is not None
    assert own.spam.folder == "Junk"


def test_a_users_file_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A symbolic link leads out of the home, a FIFO would hold us for ever, a directory is neither."""
    path = tmp_path / "mailfilter.toml"
    (tmp_path / "real").write_text('[[rule]]\nfile = "A"\n')
    path.symlink_to(tmp_path / "real")
    assert "is a symbolic link" in personal(path).error
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in personal(path).error
    path.unlink()
    path.mkdir()
    assert "not a regular file" in personal(path).error


def test_a_missing_users_file_is_no_error(tmp_path: Path) -> None:
    """Most have none."""
    assert personal(tmp_path / "none") == Personal()


def test_the_users_file_is_checked_as_such(tmp_path: Path) -> None:
    """`deliver check --user` knows what users may not."""
    path = tmp_path / "mailfilter.toml"
    path.write_text('[clamd]\n[[rule]]\nfile = "A"\nstage = "after"\n')
    done = check(path, "--user")
    assert done.returncode == 1
    assert f"{path}:1: clamd: only the site sets this" in done.stdout
    assert f"{path}:4: stage: " in done.stdout


# --- lists and DKIM ----------------------------------------------------------------------------------------------


def test_lists_are_files_by_their_names() -> None:
    text = b"[lists]\nfriends = '/etc/deliver/friends'\nown = 'friends.txt'\n[dkim]\ntimeout = '3 s'\nmax-size = '1 MiB'\n"
    found, problems = config.parse(text, "f")
    assert problems == []
    assert found is not None
    assert found.lists == {"friends": "/etc/deliver/friends", "own": "friends.txt"}
    assert (found.dkim.timeout, found.dkim.max_size) == (3.0, 1024 * 1024)


@pytest.mark.parametrize(
    "path", ["'../friends'", "'a/b'", "''", "'.hidden'", "'/etc/'", "5", "['/a']", "'..'", r'"/a\u0000b"', r'"/a\nb/"']
)
def test_a_list_lies_where_its_path_says_and_nowhere_else(path: str) -> None:
    _, problems = config.parse(f"[lists]\nfriends = {path}\n".encode(), "f")
    assert [problem.path for problem in problems] == [("lists", "friends")]


def test_a_list_of_the_site_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Mail would wait for it; one beside each Maildir may be missing."""
    path = tmp_path / "site.toml"
    path.write_text(f"[lists]\nfriends = '{tmp_path}/friends'\nown = 'friends.txt'\n")
    done = check(path)
    assert done.returncode == 1
    assert f"{path}:2: friends: {tmp_path}/friends: there is no such file" in done.stdout
    assert "1 error" in done.stderr
    (tmp_path / "friends").write_text("a@b.example\n")
    assert check(path).returncode == 0


def test_rules_know_the_names_of_lists() -> None:
    text = "[lists]\nfriends = '/f'\n[[rule]]\nfile = 'X'\nwhen = { in = 'friends' }\n"
    found, problems = config.parse(text.encode(), "f")
    assert problems == []
    assert found is not None
    own = b"[[rule]]\nfile = 'X'\nwhen = { from = { in = 'friend' } }\n"
    _, problems = config.parse_personal(own, "u", found)
    assert ['did you mean "friends"' in problem.text for problem in problems] == [True]
    _, problems = config.parse_personal(own.replace(b"'friend'", b"'friends'"), "u", found)
    assert problems == []
    assert config.parse(b"lists = 5\n[log]\n", "f")[1][0].path == ("lists",)
    assert config.parse_personal(b"[lists]\na = '/etc/passwd'\n", "u", found)[1][0].path == ("lists",)
