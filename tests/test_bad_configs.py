"""A directory of configurations, each with one kind of mistake and the lines that `deliver check` must say about it.

bad-configs/NAME/site.toml (or mailfilter.toml, a user's) and beside it expected-errors, a line for each.
"""

import itertools
from pathlib import Path

import forked
import main_job
import pytest
from click.testing import CliRunner, Result

from deliver.commands.check import check

DIRECTORY = Path(__file__).resolve().parent / "bad-configs"
NAMES = sorted(path.name for path in DIRECTORY.iterdir())


def file_of(name: str) -> Path:
    """The configuration in a directory: a user's where its name says so."""
    return DIRECTORY / name / ("mailfilter.toml" if name.startswith("user-") else "site.toml")


def checked(path: Path, *options: str) -> Result:
    """What `deliver check` says."""
    return CliRunner().invoke(check, [path.name, *options], catch_exceptions=False)


def rests(said: list[str], expected: list[str]) -> list[str]:
    """What each line said has behind the one expected; "" where they differ."""
    pairs = itertools.zip_longest(said, expected, fillvalue="")
    return [one.removeprefix(other) if one.startswith(other) else "" for one, other in pairs][: len(expected)]


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_is_told_with_file_and_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """These lines, all of them, in this order; and 1, which stops a careful administrator's script."""
    path = file_of(name)
    monkeypatch.chdir(path.parent)
    options = ["--user", "--config", "/nonexistent"] if name.startswith("user-") else []
    done = checked(path, *options)
    assert done.exit_code == 1
    said = [line for line in done.stdout.splitlines() if line.startswith(f"{path.name}:") and not line.endswith("warnings")]
    expected = (path.parent / "expected-errors").read_text().splitlines()
    # An expected line may leave out a list of all choices at its end.
    assert said == [line + rest for line, rest in zip(expected, rests(said, expected), strict=True)]
    assert any("warning:" not in line for line in said)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("user-")])
def test_with_any_of_them_mail_is_tried_again(scratch: Path, name: str) -> None:
    """None is half believed; every error is in the log."""
    home = main_job.Home(scratch, Path("/nonexistent"), "")
    home.config.write_bytes(file_of(name).read_bytes())
    ended = forked.deliver(home.environment(), home.path, stdin=main_job.message("x"))
    assert (ended.code, ended.stdout) == (75, b"4.3.5 Mail filter is not configured (#4.3.5)\n")
    assert ended.stderr == b""
    assert home.where() == ""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("user-")])
def test_a_users_mistake_costs_only_the_users_rules(scratch: Path, name: str) -> None:
    """The mail arrives and says what is wrong: the first of the errors, as `check` words it."""
    home = main_job.Home(scratch, Path("/nonexistent"), f'[log]\nto = "{scratch}/log"\n')
    (scratch / "mailfilter.toml").write_bytes(file_of(name).read_bytes())
    main_job.own(scratch)
    (scratch / "mailfilter.toml").chmod(0o600)
    assert forked.deliver(home.environment(), home.path, stdin=main_job.message("x")).code == 0
    (stored,) = home.messages()
    (line,) = [line for line in stored.decode().splitlines() if line.startswith("X-Filter-Error: mailfilter.toml: ")]
    told = [one.split(": ", 1)[1] for one in (file_of(name).parent / "expected-errors").read_text().splitlines()]
    assert any(one.rpartition(": ")[2] in line for one in told)
