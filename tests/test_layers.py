"""Whose rules apply: the site's, the domain's, the owner's; and `deliver check` and `replay`, which show it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deliver import config, layers
from deliver.config import personal
from deliver.replay import Changes, Replayer, Settings, lies_in
from deliver.rules.doubts import doubts
from deliver.settings import Config, Folder, Personal, Spam

SITE = """
domain-rules = "{root}/domains/{{domain}}.toml"
[spam]
folder = "Junk"
[user]
may-set = ["spam.required-score"]
[[rule]]
name = "first"
file = "A"
[rule.when]
subject = "*a*"
[[rule]]
name = "last"
stage = "after"
file = "Z"
"""


class Mailbox:
    """A site with a domain and a user's mailbox."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.site = root / "site.toml"
        self.site.write_text(SITE.format(root=root))
        (root / "domains").mkdir()
        self.domain = root / "domains" / "example.org.toml"
        (root / "home" / "Maildir").mkdir(parents=True)
        self.maildir = root / "home" / "Maildir"
        self.owner = root / "home" / "mailfilter.toml"
        self.domain.write_text(
            '[spam]\nrequired-score = 4.0\ndelete-above = 20.0\n[[rule]]\nname = "domain"\nfile = "D"\n'
        )
        self.owner.write_text('[spam]\nrequired-score = 6.0\n[[rule]]\nname = "mine"\nfile = "M"\n')

    def applies(self, recipient: str = "bob@example.org") -> Personal:
        site = config.load(str(self.site))
        return layers.together(site, layers.layers(site, recipient, str(self.maildir), personal, os.geteuid()))


@pytest.fixture(name="box")
def make_box(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path)


def test_the_domains_rules_come_before_the_owners_and_the_last_setting_counts(box: Mailbox) -> None:
    own = box.applies("Bob@EXAMPLE.org")
    assert [rule.name for rule in own.rules] == ["domain", "mine"]
    assert own.spam == Spam(folder=Folder("Junk"), required_score=6.0, delete_above=20.0)
    assert own.error == ""


def test_another_domain_has_none_of_them(box: Mailbox) -> None:
    own = box.applies("bob@example.net")
    assert [rule.name for rule in own.rules] == ["mine"]
    assert own.spam is not None
    assert own.spam.delete_above == 12.0


@pytest.mark.parametrize(
    "recipient",
    ["bob", "bob@", "bob@../../etc/passwd", "bob@.org", "bob@a..b", "bob@a/b", "bob@a\0b", "bob@a\nb", "bob@[::1]", ""],
)
def test_what_is_no_domain_names_no_file(recipient: str) -> None:
    assert layers.domain_file(Config(domain_rules="/d/{domain}.toml"), recipient) == ""
    assert layers.domain_file(Config(domain_rules="/d/{domain}.toml"), "a@Example.org") == "/d/example.org.toml"
    assert layers.domain_file(Config(), "a@example.org") == ""


@pytest.mark.parametrize("trouble", ["wrong", "writable", "link", "secret settings"])
def test_a_domains_file_with_a_fault_costs_itself_alone(box: Mailbox, trouble: str) -> None:
    if trouble == "wrong":
        box.domain.write_text("[[rule]]\nfil = 'x'\n")
    elif trouble == "writable":
        box.domain.chmod(0o666)
    elif trouble == "link":
        box.domain.rename(box.root / "x")
        box.domain.symlink_to(box.root / "x")
    else:
        box.domain.write_text("[spam]\ntrust-header = 'X-Spam'\n")
    own = box.applies()
    assert [rule.name for rule in own.rules] == ["mine"]
    assert own.error.startswith("example.org.toml: ")
    assert own.error.endswith("the domain's rules were left out")


def test_a_template_must_be_a_path_with_the_domain() -> None:
    for template in ("domains/{domain}", "/etc/x.toml"):
        assert config.parse(f'domain-rules = "{template}"\n'.encode(), "f")[1]


def deliver(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command as a process."""
    command = [sys.executable, "-m", "deliver", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=stdin)


# --- check -------------------------------------------------------------------------------------------------------


def test_check_explains_the_layers(box: Mailbox) -> None:
    words = ("check", "--config", str(box.site), "--explain-layers", str(box.maildir), "--recipient", "bob@example.org")
    said = json.loads(deliver(*words, "--json").stdout)
    assert [(one["whose"], one["rules"]) for one in said["files"]] == [("site", 2), ("domain", 1), ("owner", 1)]
    assert [(one["rule"], one["whose"], one["line"]) for one in said["rules"]] == [
        ('rule "first"', "site", 7),
        ('rule "domain"', "domain", 4),
        ('rule "mine"', "owner", 3),
        ('rule "last"', "site", 12),
    ]
    found = {(one["table"], one["key"]): one for one in said["settings"]}

    def source(key: str) -> tuple[Any, str, int]:
        one = found["spam", key]
        return one["value"], one["whose"], one.get("line", 0)

    assert source("folder") == ("Junk", "site", 4)
    assert source("delete-above") == (20.0, "domain", 3)
    assert source("required-score") == (6.0, "owner", 2)
    assert source("mark-read") == (False, "default", 0)
    text = deliver(*words).stdout
    assert f"[spam] required-score = 6.0  (owner, {box.owner}:2)" in text
    assert f'rule "domain"  (domain, {box.domain}:4)' in text


def test_check_explains_settings_as_they_are_written(tmp_path: Path) -> None:
    """Spans in their units, scanners where they stand; and JSON has no word for what never comes."""
    (tmp_path / "Maildir").mkdir()
    site = tmp_path / "site.toml"
    site.write_text('[spam]\ndelete-above = inf\n[[scanner]]\nname = "one"\nkind = "icap"\n')
    words = ("check", "--config", str(site), "--explain-layers", str(tmp_path / "Maildir"), "--json")

    def no_such_number(word: str) -> None:
        pytest.fail(f"{word} is not JSON (RFC 8259 section 6)")

    said = json.loads(deliver(*words).stdout, parse_constant=no_such_number)
    found = {(one["table"], one["key"]): one for one in said["settings"]}
    assert found["spam", "delete-above"]["value"] == "inf"
    assert found["quarantine", "keep"]["value"] == "30 d"
    assert found["", "scanner"]["value"] == [{"name": "one", "kind": "icap"}]
    assert (found["", "scanner"]["whose"], found["", "scanner"]["line"]) == ("site", 3)


def test_check_says_which_layer_is_missing_or_not_used(box: Mailbox) -> None:
    box.domain.unlink()
    box.owner.chmod(0o666)
    done = deliver(
        "check", "--config", str(box.site), "--explain-layers", str(box.maildir), "--recipient", "b@example.org"
    )
    assert f"domain  {box.domain}: not there" in done.stdout
    assert f"owner   {box.owner}: not used: is writable by others" in done.stdout
    assert "mine" not in done.stdout


def test_check_runs_the_tests_beside_rules(tmp_path: Path) -> None:
    path = tmp_path / "mailfilter.toml"
    (tmp_path / "one.eml").write_text("Subject: from a file\n\n")
    path.write_text(
        '[[rule]]\nfile = "A"\n[rule.when]\nsubject = "*a*"\n'
        '[[rule.test]]\nmessage = """\nSubject: a\n\n"""\nexpect = { folder = "A" }\n'
        '[[rule.test]]\nfile = "one.eml"\nexpect = { folder = "A" }\n'
        '[[rule.test]]\nname = "the wrong one"\nmessage = "Subject: b\\n\\n"\nexpect = { folder = "A", exit = 75 }\n'
        '[[rule.test]]\nscan = { spamd = { finding = "spam", score = 9 } }\nmessage = "Subject: a\\n\\n"\nexpect = { folder = "Spam" }\n'
    )
    done = deliver("check", "--user", "--test", str(path))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{path}:14: test \"the wrong one\": folder: expected 'A', got 'INBOX'",
        f'{path}:14: test "the wrong one": exit: expected 75, got 0',
    ]
    assert done.stderr == f"{path}: 2 errors, 0 warnings, 4 tests run\n"
    assert deliver("check", "--user", str(path)).returncode == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "link", "fifo", "", ".", "a/b"])
def test_a_test_reads_no_file_but_beside_the_rules(tmp_path: Path, name: str) -> None:
    """`deliver check --test` may be run by an administrator on a user's file."""
    (tmp_path / "secret").write_text("Subject: secret\n\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to("../secret")
    path = home / "mailfilter.toml"
    path.write_text(f'[[rule]]\nfile = "A"\n[[rule.test]]\nfile = "{name}"\nexpect = {{ stored = "x" }}\n')
    if name == "fifo":
        os.mkfifo(home / "fifo")
    done = deliver("check", "--user", "--test", str(path))
    assert done.returncode == 1
    assert "secret" not in done.stdout.replace("../secret", "")
    assert "root:" not in done.stdout


@pytest.mark.parametrize(
    "when",
    [
        {"subject": {"is": "a"}, "all": [{"subject": {"is": "b"}}]},
        {"subject": "a", "all": [{"subject": "b"}]},
        {"from": "a@x.org", "all": [{"from": "*@y.org"}]},
        {"header": {"X-A": "a"}, "all": [{"header": {"x-a": "b"}}]},
        {"sender": ["a@x.org", "b@x.org"], "all": [{"sender": {"contains": "@y"}}]},
        {"size": "> 5 KB", "all": [{"size": "< 5 KB"}]},
        {"size": "> 5 KB", "all": [{"size": "<= 5 KB"}]},
        {"size": 5, "all": [{"size": "> 5"}]},
        {"score": ["< 1", "> 9"], "all": [{"score": [">= 1"]}, {"score": "<= 9"}]},
        {"spam": True, "all": [{"all": [{"spam": False}]}]},
        {"from": "a@x.org", "not": {"from": "*@x.org"}},
        {"from": ["a@x.org", "b@x.org"], "not": [{"from": "a@x.org"}, {"from": "B@x.org"}]},
        {"is-list": True, "not": {"is-list": True}},
        {"encrypted": True, "all": [{"encrypted": False}]},
        {"size": "< 0"},
        {"recipients": "> 5", "all": [{"recipients": "< 3"}]},
    ],
)
def test_rules_that_can_never_match_are_named(when: dict[str, object]) -> None:
    (problem,) = doubts([{"file": "A"}, {"file": "A", "when": when}])
    assert problem.path == ("rule", 1, "when")
    assert problem.warning
    assert "no message can match" in problem.text


@pytest.mark.parametrize(
    "when",
    [
        {"subject": "*a*", "all": [{"subject": "*b*"}]},
        {"subject": {"regex": "a"}, "all": [{"subject": "b"}]},
        {"to": "a@x.org", "all": [{"to": "b@x.org"}]},
        {"any": [{"subject": "a"}, {"subject": "b"}]},
        {"subject": "A", "all": [{"subject": ["a", "b"]}]},
        {"subject": r"a\*", "all": [{"subject": "a*"}]},
        {"size": "> 5 KB", "all": [{"size": "< 6 KB"}]},
        {"size": ">= 5", "all": [{"size": "<= 5"}]},
        {"score": ["< 1", "> 9"], "all": [{"score": "> 0"}]},
        {"from": "a@x.org", "not": {"from": "*@x.org", "subject": "*x*"}},
        {"from": ["a@x.org", "c@x.org"], "not": {"from": "a@x.org"}},
        {"is-list": True, "not": {"is-list": False}},
        {"is-bounce": True, "not": {"is-bounce": "permanent"}},
        {"score": "< 0"},
        {"recipients": 0},
        {"size": "nonsense", "all": [{"size": 5}, "no table"], "not": 5},
    ],
)
def test_nothing_is_said_where_a_rule_may_match(when: dict[str, object]) -> None:
    assert doubts([{"file": "A", "when": when}]) == []


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ({"from": "*@x.org"}, {"from": "A@X.org"}, True),
        ({"from": ["a@x.org", "b@x.org"]}, {"from": "b@x.org", "subject": "*y*"}, True),
        ({"subject": "*a*"}, {"subject": {"contains": "bad"}}, True),
        ({"subject": {"contains": "a"}}, {"subject": ["*abc*", {"is": "a"}]}, True),
        ({"subject": "a?c*"}, {"subject": "a?cd"}, True),
        ({"header": {"X-A": "*b*"}}, {"header": {"X-A": "b", "X-B": "c"}}, True),
        ({"size": "> 1 MB"}, {"size": [">= 5 MB", "2 MB"]}, True),
        ({"is-list": True}, {"is-list": True, "subject": "*x*"}, True),
        ({"subject": "*a*"}, {"subject": "*b*"}, False),
        ({"subject": "a?c"}, {"subject": "a*c"}, False),
        ({"subject": r"a\*c"}, {"subject": "a*c"}, False),
        ({"subject": "*abc*"}, {"subject": "*a*"}, False),
        ({"subject": "*a*"}, {"subject": {"regex": "a"}}, False),
        ({"subject": {"regex": "a"}}, {"subject": "a"}, False),
        ({"subject": ["*a*", "*b*"]}, {"subject": ["a", "c"]}, False),
        ({"size": "> 1 MB"}, {"size": "> 500 KB"}, False),
        ({"size": "nonsense"}, {"size": "> 5 MB"}, False),
        ({"from": "*@x.org", "size": "> 1"}, {"from": "a@x.org"}, False),
        ({"not": {"subject": "*a*"}}, {"not": {"subject": "abc"}}, False),
    ],
)
def test_a_rule_that_another_covers_is_never_asked(
    wide: dict[str, object], narrow: dict[str, object], covered: bool
) -> None:
    found = doubts([{"file": "A", "when": wide}, {"file": "B", "when": narrow}])
    assert [one.path for one in found] == [("rule", 1)] * covered


def test_a_thousand_rules_are_compared_in_seconds() -> None:
    tables = [
        {"file": f"F{n}", "when": {"from": [f"a{n}@x{n}.org", f"*@y{n}.org"], "subject": f"*word{n}*"}}
        for n in range(1000)
    ]
    begun = time.process_time()
    assert doubts(tables) == []
    assert time.process_time() - begun < 8  # a rule's patterns made anew for each pair took 15 s and more


def test_rules_below_a_wider_one_are_named() -> None:
    wide = {"file": "A", "when": {"from": "*@x.org"}}
    narrow = {"flag": "seen", "when": {"from": "*@x.org", "subject": "*y*"}}
    (problem,) = doubts([wide, narrow])
    assert (problem.path, problem.warning) == (("rule", 1), True)
    assert "rule 1 places every message" in problem.text
    assert doubts([narrow, wide]) == []
    assert doubts([{**wide, "file": False, "flag": "seen"}, narrow]) == []
    assert doubts([wide, {**narrow, "sees": "all"}]) == []
    assert doubts([{**wide, "sees": "all"}, {**narrow, "sees": "spam"}]) != []
    assert doubts("x") == doubts(None) == doubts([5, {"when": 5}]) == []


def test_rules_of_one_name_are_told() -> None:
    """The log and `replay` call a rule by its name."""
    first, second = ({"name": "x", "flag": flag} for flag in ("seen", "flagged"))
    (problem,) = doubts([first, {"flag": "seen"}, second])
    assert (problem.path, problem.warning) == (("rule", 2, "name"), True)
    assert "rule 1 has this name, too" in problem.text
    assert doubts([first, {"name": "y", "flag": "seen"}, {"flag": "seen"}, {"flag": "seen"}]) == []


# --- replay ------------------------------------------------------------------------------------------------------


def fill(maildir: Path, folder: str, count: int, headers: str = "") -> None:
    """Messages in a folder."""
    home = maildir / f".{folder}" if folder else maildir
    for part in ("tmp", "new", "cur"):
        (home / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (home / ("cur" if number % 2 else "new") / f"{number}.x").write_text(f"{headers}Subject: {number}\n\nbody\n")


def test_a_replay_of_a_maildir_ends_in_a_summary(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    fill(maildir, "", 12, "List-Id: <qmail.example>\n")
    fill(maildir, "Lists.qmail", 3, "List-Id: <qmail.example>\n")
    fill(maildir, "Old", 2)
    fill(maildir, "Sent", 5)
    (tmp_path / "mailfilter.toml").write_text('[[rule]]\nfile = "Lists.{list-name}"\n[rule.when]\nlist-id = "*"\n')
    done = deliver("replay", "--plain", "--summary", "--maildir", str(maildir), str(maildir))
    assert done.stdout.splitlines() == [
        "12 messages in the inbox would be filed in Lists.qmail",
        "2 messages in Old would be put into the inbox",
        "3 messages would stay where they are",
    ]
    lines = deliver("replay", "--plain", "--json", "--maildir", str(maildir), str(maildir)).stdout.splitlines()
    assert [json.loads(line)["now"] for line in lines].count("INBOX") == 12
    assert len(lines) == 17


def test_results_come_in_the_order_of_the_paths_and_a_message_that_went_away_is_no_end(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number:02}.eml") for number in range(30)]
    for path in paths:
        Path(path).write_text(f"Subject: {path}\n\n")
    os.unlink(paths[7])

    async def run() -> list[tuple[str, bool]]:
        replayer = Replayer(Settings(Config(), scan=False))
        return [(path, isinstance(result, FileNotFoundError)) async for path, result in replayer.replay_all(paths)]

    assert asyncio.run(run()) == [(path, path == paths[7]) for path in paths]


def make_owner(home: Path, text: str, mode: int = 0o600) -> tuple[str, str, str]:
    """A mailbox with an owner's file, as options of a replay of one message."""
    fill(home / "Maildir", "", 0)
    (home / "mailfilter.toml").write_text(text)
    (home / "mailfilter.toml").chmod(mode)
    (home / "ham.eml").write_text("Subject: x\n\nbody\n")
    return "--plain", f"--maildir={home}/Maildir", str(home / "ham.eml")


SLIP = '[[rule]]\nfile = "A"\n[[rule]]\nfile = "B"\n[rule.when]\nsbject = "x"\n'
SLIPPED = 'mailfilter.toml: rule 2: when: sbject: unknown condition "sbject"; did you mean "subject"?'
LEFT = "the site's rules alone were applied"


def test_a_replay_says_that_the_owners_file_is_wrong(tmp_path: Path) -> None:
    """A delivery says it in X-Filter-Error, and applies none of its rules."""
    options = make_owner(tmp_path, SLIP)
    done = deliver("replay", *options)
    assert f"    owner    {SLIPPED}; {LEFT}" == done.stdout.splitlines()[2]
    assert done.stderr.splitlines() == [f"{SLIPPED}; {LEFT}"]
    assert "goes into the inbox" in done.stdout
    assert done.returncode == 0
    done = deliver("replay", "--summary", *options, options[-1])
    assert done.stderr.splitlines() == [f"{SLIPPED}; {LEFT}"]
    assert "owner" not in done.stdout
    said = json.loads(deliver("replay", "--json", *options).stdout)
    assert said["steps"][0] == {"kind": "owner", "text": f"{SLIPPED}; {LEFT}"}


def test_a_replay_believes_only_an_owners_file_that_a_delivery_believes(tmp_path: Path) -> None:
    """Named, it may be anybody's: it is tried before it lies where it counts."""
    options = make_owner(tmp_path, '[[rule]]\nfile = "A"\n', 0o666)
    done = deliver("replay", *options)
    assert "goes into the inbox" in done.stdout
    assert done.stderr == f"mailfilter.toml: is writable by others; chmod go-w; {LEFT}\n"
    done = deliver("replay", "--user-rules", str(tmp_path / "mailfilter.toml"), *options)
    assert ("goes into A" in done.stdout, done.stderr, done.returncode) == (True, "", 0)
    (tmp_path / "mailfilter.toml").chmod(0o600)
    assert "goes into A" in deliver("replay", *options).stdout


def test_a_replay_of_named_rules_with_errors_fails(tmp_path: Path) -> None:
    options = make_owner(tmp_path, "")
    named = tmp_path / "new.toml"
    named.write_text(SLIP + 'fil = "x"\n[spam]\nfolder = "x"\n')
    done = deliver("replay", "--summary", "--user-rules", str(named), *options)
    assert done.returncode == 1
    assert done.stderr.startswith("new.toml: rule 2: ")
    assert f" (and 2 more); {LEFT}" in done.stderr


def test_a_replay_names_the_rules_that_are_not_there(tmp_path: Path) -> None:
    options = make_owner(tmp_path, "")
    done = deliver("replay", "--user-rules", f"{tmp_path}/none.toml", *options)
    assert (done.returncode, done.stderr) == (1, f"Error: {tmp_path}/none.toml: No such file or directory\n")


def test_where_a_message_lies() -> None:
    assert lies_in("/home/b/Maildir/cur/1") == ("/home/b/Maildir", "INBOX")
    assert lies_in("/home/b/x.eml") == ("", "")


def test_nothing_to_say_is_no_lines() -> None:
    assert Changes().lines() == []


def test_a_replay_of_a_maildir_takes_the_rules_beside_it(tmp_path: Path) -> None:
    make_owner(tmp_path, '[[rule]]\nfile = "A"\n')
    (tmp_path / "Maildir" / ".B").mkdir()
    for folder in ("", ".B"):
        for part in ("cur", "new", "tmp"):
            (tmp_path / "Maildir" / folder / part).mkdir(exist_ok=True)
        (tmp_path / "Maildir" / folder / "cur" / "1").write_text("Subject: x\n\n")
    config = tmp_path / "site.toml"
    config.write_text('user-rules = "mailfilter.toml"\n')
    done = deliver("replay", "--config", str(config), "--summary", str(tmp_path / "Maildir"))
    assert done.stdout.splitlines() == [
        "1 message in B would be filed in A",
        "1 message in the inbox would be filed in A",
    ]
