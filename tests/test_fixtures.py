"""The fixture families, and the command that compares messages with what is expected of them."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deliver.replay import Settings, replay
from deliver.settings import Config

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.eml")), ids=lambda path: path.stem)
def test_family(path: Path) -> None:
    """Each message goes where its NAME.expect.toml says."""
    assert path.with_suffix(".expect.toml").exists()
    assert asyncio.run(replay(str(path), Settings(Config()))).wrong == ()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("own-threshold-says-spam", "required-score is 3.5: that is spam"),
        ("own-threshold-says-ham", "required-score is 7: that is not spam"),
        ("users-threshold", "required-score is 4: that is spam"),
        ("spam", ""),
    ],
)
def test_a_threshold_that_is_not_spamds_is_told(name: str, told: str) -> None:
    """spamd's words alone ("clean, 3.5 of 5.0 points") would contradict what happens."""
    steps = asyncio.run(replay(str(FIXTURES / f"{name}.eml"), Settings(Config()))).steps
    assert [step.text for step in steps if step.text.startswith("required-score")] == ([told] if told else [])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`deliver replay` as a process."""
    command = [sys.executable, "-m", "deliver", "replay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def family(directory: Path, name: str, expect: str) -> Path:
    """A message with a rule of its own that files it in A."""
    (directory / f"{name}.eml").write_text("Subject: x\n\nbody\n")
    (directory / f"{name}.rules.toml").write_text('[[rule]]\nname = "one"\nfile = "A"\n')
    (directory / f"{name}.expect.toml").write_text(expect)
    return directory / f"{name}.eml"


def test_the_command_tells_each_difference(tmp_path: Path) -> None:
    """What was expected and what came; 1 at the end."""
    family(tmp_path, "right", 'folder = "A"\n')
    family(tmp_path, "wrong", 'folder = "B"\nexit = 75\nreason = "rule*"\n')
    done = run("--expect", str(tmp_path))
    assert done.returncode == 1
    assert "folder: expected 'B', got 'A'" in done.stdout
    assert "exit: expected 75, got 0" in done.stdout
    assert "right.eml" not in done.stdout
    assert "2 messages with expectations, 1 not as expected" in done.stderr


def test_an_expectation_that_cannot_be_checked_is_wrong(tmp_path: Path) -> None:
    """A slip in an expectation must not pass."""
    family(tmp_path, "slip", 'foldr = "A"\n')
    done = run("--expect", str(tmp_path))
    assert done.returncode == 1
    assert "foldr cannot be expected" in done.stdout


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    """With the keys of design.md section 6."""
    family(tmp_path, "a", "")
    family(tmp_path, "b", "")
    records = [json.loads(line) for line in run("--json", str(tmp_path)).stdout.splitlines()]
    assert [Path(record["file"]).name for record in records] == ["a.eml", "b.eml"]
    for record in records:
        assert {"file", "action", "folder", "reason", "exit", "verdicts", "steps"} <= record.keys()
        assert (record["action"], record["folder"], record["exit"]) == ("file", "A", 0)
        assert 'rule "one"' in record["reason"]


def test_the_explanation_is_in_words(tmp_path: Path) -> None:
    """For the mailbox's owner."""
    path = family(tmp_path, "a", "")
    said = run(str(path)).stdout
    assert 'goes into A: rule "one"' in said


def test_replaying_a_maildir_changes_nothing(tmp_path: Path) -> None:
    """Its folders and its quota count; not a byte, not a time changes."""
    maildir = tmp_path / "Maildir"
    for part in ("tmp", "new", "cur", ".A/tmp", ".A/new", ".A/cur"):
        (maildir / part).mkdir(parents=True)
    (maildir / "subscriptions").write_text("V\t2\n\nA\n")
    (maildir / "maildirsize").write_text("100S\n         100            1\n")
    (maildir / "cur" / "1.x:2,S").write_text("Delivered-To: you@example.org\nSubject: x\n\nbody\n")
    (maildir / ".A" / "new" / "2.x").write_text("Subject: y\n\nbody\n")
    before = {path: path.stat().st_mtime_ns for path in maildir.rglob("*")}
    done = run("--plain", "--json", "--maildir", str(maildir), str(maildir))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["action"] for record in records] == ["bounce", "bounce"]
    assert "5.2.2" in records[0]["answer"]
    assert {path: path.stat().st_mtime_ns for path in maildir.rglob("*")} == before


def test_a_replay_knows_the_sites_limit_and_its_name_for_the_owners_file(tmp_path: Path) -> None:
    """As a delivery would, where no maildirsize says another limit."""
    for part in ("tmp", "new", "cur"):
        (tmp_path / "Maildir" / part).mkdir(parents=True)
    (tmp_path / "Maildir" / "cur" / "1.a.h:2,S").write_bytes(b"x" * 900)
    (tmp_path / "site.toml").write_text('user-rules = "filters.toml"\n[quota]\nlimit = "1000 B"\n')
    (tmp_path / "filters.toml").write_text('[[rule]]\nfile = "Trash"\n[rule.when]\nsubject = "small"\n')
    (tmp_path / "message").write_text("Subject: x\n\n" + "y" * 200)
    (tmp_path / "other").write_text("Subject: small\n\n" + "y" * 200)
    options = ["--config", str(tmp_path / "site.toml"), "--maildir", str(tmp_path / "Maildir"), "--json"]
    found = [json.loads(run(*options, str(tmp_path / name)).stdout) for name in ("message", "other")]
    assert [(one["exit"], one["folder"]) for one in found] == [(100, ""), (0, "Trash")]
