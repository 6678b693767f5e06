"""`deliver check`: every error of a configuration at once, with its line."""

import json
import os
import re
from typing import Any

import click

from deliver import config
from deliver.errors import DeliverError
from deliver.values import Problem


@click.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--user", is_flag=True, help="FILE is a user's own: rules, and what [user] may-set allows.")
@click.option("--config", "site_path", default="", help="The site's configuration, for --user.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: file, line, level, text.")
def check(file: str | None, user: bool, site_path: str, as_json: bool) -> None:
    """Check a configuration FILE (default: the site's). Ends with 1 if it has errors, 0 otherwise."""
    site_path = config.find(site_path, os.environ.get("DELIVER_CONFIG", ""))
    path = file or site_path
    problems = _user_problems(path, site_path) if user else _site_problems(path)
    lines = _Lines(path)
    found = [lines.located(problem) for problem in problems]
    for one in sorted(found, key=lambda entry: entry["line"]):
        warning = "warning: " if one["level"] == "warning" else ""
        click.echo(json.dumps(one) if as_json else f"{one['file']}:{one['line']}: {warning}{one['text']}")
    errors = sum(one["level"] == "error" for one in found)
    if not as_json:
        click.echo(f"{path}: {_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}", err=bool(errors))
    raise SystemExit(1 if errors else 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _site_problems(path: str) -> list[Problem]:
    try:
        return config.read(path)[1]
    except DeliverError as error:
        return [Problem((), error.detail)]


def _user_problems(path: str, site_path: str) -> list[Problem]:
    site = config.Config()
    if os.path.exists(site_path):
        site = config.read(site_path)[0] or site
    try:
        owner = os.stat(path).st_uid
        with open(path, "rb") as file:
            text = file.read(config.USER_FILE_CAP + 1)
        trouble = config.distrust(os.stat(path), owner)
    except OSError as error:
        return [Problem((), f"cannot be read: {error.strerror}")]
    problems = config.parse_personal(text, os.path.basename(path), site)[1]
    return [*([Problem((), f"it {trouble}")] if trouble else []), *problems]


class _Lines:
    """Finds the line of a problem in a file that may be no TOML at all, or not there."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._positions: Any = None
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError:
            return
        from deliver.positions import Positions

        self._positions = Positions(text)

    def located(self, problem: Problem) -> dict[str, Any]:
        """The problem as an object with its line."""
        syntax = re.search(r" \(at line ([0-9]+), column ([0-9]+)\)", problem.text)
        line = int(syntax[1]) if syntax else self._positions.line(problem.path) if self._positions else 1
        text = problem.text.replace(syntax[0], "") if syntax else problem.text
        words = "".join(f"{part}: " for part in _keys(problem.path)) + text
        return {"file": self._path, "line": line, "level": "warning" if problem.warning else "error", "text": words}


def _keys(path: tuple[str | int, ...]) -> list[str]:
    """The names worth saying: the line is given, so a rule's number and its `when` are not."""
    names = [part for part in path if isinstance(part, str) and part not in ("rule", "when")]
    return names[-1:]
