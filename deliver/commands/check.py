"""`deliver check`: every error of a configuration at once, with its line; rules' own tests; what applies to whom."""

import asyncio
import json
import os
import re
import tomllib
from typing import Any

import click

from deliver import config, wiring
from deliver.admin import doctor
from deliver.errors import DeliverError
from deliver.notices import read_template
from deliver.rules.doubts import doubts
from deliver.settings import Config
from deliver.values import Envelope, Problem


@click.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--user", is_flag=True, help="FILE is a user's own: rules, and what [user] may-set allows.")
@click.option("--domain", is_flag=True, help="FILE is a domain's (domain-rules).")
@click.option("--config", "site_path", default="", help="The site's configuration, for --user and --domain.")
@click.option("--test", is_flag=True, help="Run the tests that stand beside rules, [[rule.test]], as well.")
@click.option("--explain-layers", "maildir", default="", metavar="MAILDIR", help="Say what applies to this mailbox.")
@click.option("--recipient", default="", help="Whose mailbox it is, for --explain-layers.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: file, line, level, text.")
def check(
    file: str | None,
    user: bool,
    domain: bool,
    site_path: str,
    test: bool,
    maildir: str,
    recipient: str,
    as_json: bool,
) -> None:
    """Check a configuration FILE (default: the site's). Ends with 1 if it has errors, 0 otherwise."""
    site_path = config.find(site_path, os.environ.get("DELIVER_CONFIG", ""))
    if maildir:
        _explain(file or site_path, maildir, recipient, as_json=as_json)
        return
    path = file or site_path
    personal = user or domain
    problems = _personal_problems(path, site_path, domain=domain) if personal else _site_problems(path)
    document = _document(path)
    forgeries = wiring.forgeries(_site(site_path if personal else path))
    problems += doubts(document.get("rule"), lambda name: forgeries.forged(name.encode(), b""))
    problems += [] if personal else _nobody(document)
    tested = 0
    if test and not any(not problem.warning for problem in problems):
        tested, failed = _tests(path, _site(site_path) if personal else config.load(path), user=user, domain=domain)
        problems += failed
    lines = _Lines(path)
    found = [lines.located(problem) for problem in problems]
    for one in sorted(found, key=lambda entry: entry["line"]):
        warning = "warning: " if one["level"] == "warning" else ""
        click.echo(json.dumps(one) if as_json else f"{one['file']}:{one['line']}: {warning}{one['text']}")
    errors = sum(one["level"] == "error" for one in found)
    if not as_json:
        done = f", {_count(tested, 'test')} run" if test else ""
        click.echo(
            f"{path}: {_count(errors, 'error')}, {_count(len(found) - errors, 'warning')}{done}", err=bool(errors)
        )
    raise SystemExit(1 if errors else 0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _site_problems(path: str) -> list[Problem]:
    try:
        settings, problems = config.read(path)
    except DeliverError as error:
        return [Problem((), error.detail)]
    settings = settings or Config()
    return problems + _templates(settings) + _quarantine(path, settings) + _lists(settings)


def _lists(settings: Config) -> list[Problem]:
    """The site's own lists that cannot be read: mail that a rule asks them about would wait."""
    problems = []
    ask = wiring.outside(settings)(Envelope("", "", "/nonexistent/Maildir")).addresses
    for name, path in settings.lists.items():
        try:
            if path.startswith("/"):
                ask(name)
        except DeliverError as error:
            problems.append(Problem(("lists", name), error.detail.removeprefix(f"[lists] {name}: ")))
    return problems


def _quarantine(path: str, settings: Config) -> list[Problem]:
    """Why a virus would have to wait."""
    found = doctor.the_quarantine(doctor.Case(path, settings, {}))
    return [
        Problem(("quarantine", "directory"), f"{said.words}: {said.advice}", warning=True)
        for said in found
        if said.level != "ok"
    ]


def _templates(settings: Config) -> list[Problem]:
    """What is wrong with the templates of notices."""
    problems = []
    for key in ("text", "html"):
        path = getattr(settings.notices, key)
        try:
            if path.startswith("/"):
                read_template(path)
        except (OSError, ValueError) as error:
            words = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            problems.append(Problem(("notices", key), words))
    return problems


def _site(path: str) -> Config:
    """The site's configuration, as far as there is one."""
    return (config.read(path)[0] if os.path.exists(path) else None) or Config()


def _personal_problems(path: str, site_path: str, *, domain: bool) -> list[Problem]:
    site = _site(site_path)
    try:
        owner = os.stat(path).st_uid
        with open(path, "rb") as file:
            text = file.read(config.USER_FILE_CAP + 1)
        trouble = config.distrust(os.stat(path), owner)
    except OSError as error:
        return [Problem((), f"cannot be read: {error.strerror}")]
    problems = config.parse_personal(text, os.path.basename(path), site, domain)[1]
    return [*([Problem((), f"it {trouble}")] if trouble else []), *problems]


def _document(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read().decode())
    except (OSError, ValueError, RecursionError):  # said elsewhere
        return {}


def _nobody(document: dict[str, Any]) -> list[Problem]:
    """The door for LMTP where no address leads to a mailbox; not if it is only the default that opens it."""
    service = document.get("service")
    users = document.get("users")
    known = isinstance(users, dict) and any(users.values())
    if known or not isinstance(service, dict) or not service.get("lmtp"):
        return []
    words = "without [users] every recipient by LMTP is told to wait (451); write [users], or lmtp = []"
    return [Problem(("service", "lmtp"), words, warning=True)]


def _tests(path: str, site: Config, *, user: bool, domain: bool) -> tuple[int, list[Problem]]:
    """How many tests stand in a file without errors, and what those that fail say."""
    from deliver.replay import Settings, run_test, tests_of

    settings = Settings(site, user_file=path if user else "", domain_file=path if domain else "")
    problems = []
    count = 0
    for rule, index, test in tests_of(_document(path)):
        count += 1
        name = f'test "{test["name"]}"' if "name" in test else f"test {index + 1}"
        try:
            wrong = asyncio.run(run_test(test, settings, os.path.dirname(path)))
        except (DeliverError, OSError) as error:
            wrong = (getattr(error, "detail", "") or str(error),)
        problems += [Problem(("rule", rule, "test", index), f"{name}: {line}") for line in wrong]
    return count, problems


def _explain(site_path: str, maildir: str, recipient: str, *, as_json: bool) -> None:
    from deliver.commands.explain import explained, in_words

    try:
        said = explained(config.load(site_path), site_path, maildir, recipient)
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
    click.echo(json.dumps(said, default=str) if as_json else in_words(said))


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
    names = [part for part in path if isinstance(part, str) and part not in ("rule", "when", "test")]
    return names[-1:]
