"""The site's configuration and a user's own: TOML in, typed settings or a list of everything that is wrong out.

Neither tomllib nor msgspec knows lines: a Problem says by its keys where it is, and
`deliver check` finds the line for it.
"""

import codecs
import errno
import os
import stat
import tomllib
from typing import Any

import msgspec

from deliver import plausible
from deliver.errors import Deferred, NotConfigured
from deliver.message import is_passing
from deliver.rules import load as rule_files
from deliver.settings import SETTABLE, TABLES, TOP, Config, Personal
from deliver.tables import convert, names
from deliver.values import Problem

DEFAULT_PATH = "/etc/deliver/mailfilter.toml"

USER_FILE_CAP = 256 * 1024
"""Bytes a user's file may have; the longest of 33 real maildrop filters has 40 KB."""


def find(option: str = "", environment: str = "") -> str:
    """The configuration's path: ``--config``, else $DELIVER_CONFIG, else DEFAULT_PATH."""
    return option or environment or DEFAULT_PATH


def load(path: str) -> Config:
    """The site's configuration; raises NotConfigured with everything that is wrong with it."""
    config, problems = read(path)
    errors = [problem for problem in problems if not problem.warning]
    if config is None or errors:
        raise NotConfigured("\n".join(f"{path}: {where(problem)}{problem.text}" for problem in errors))
    return config


def where(problem: Problem) -> str:
    """The keys that lead to a problem, in words: "[spam] folder: "."""
    if not problem.path:
        return ""
    head, *rest = problem.path
    if head in ("rule", "scanner") and rest and isinstance(rest[0], int):
        return f"{head} {rest[0] + 1}: " + "".join(f"{part}: " for part in rest[1:])
    return "".join([f"[{head}] " if rest else f"{head}: ", ".".join(map(str, rest)), ": " if rest else ""])


def read(path: str) -> tuple[Config | None, list[Problem]]:
    """The configuration in a file and all its problems; None where not even TOML could be read.

    Raises Deferred on an error that may pass (EIO, ESTALE, EMFILE, ENOMEM).
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None, [Problem((), "there is no such file; copy mailfilter.example.toml there, or deliver with --plain")]
    except OSError as error:
        if is_passing(error):
            raise Deferred(f"{path}: {error.strerror}") from error
        return None, [Problem((), f"cannot be read: {error.strerror}")]
    return parse(text, os.path.basename(path))


def parse(text: bytes, source: str) -> tuple[Config | None, list[Problem]]:
    """The configuration in ``text``; ``source`` is the name that its rules get in explanations."""
    document, problems = _toml(text)
    if document is None:
        return None, problems
    if not document:
        return None, [Problem((), "the file is empty; see mailfilter.example.toml, or deliver with --plain")]
    values: dict[str, Any] = {}
    tables = (*TABLES, "rule", "programs", "lists", "scanner")
    top = {key: value for key, value in document.items() if key not in tables}
    values.update(convert(Config, top, (), problems, (*TOP, *tables)))
    for name, kind in TABLES.items():
        if name in document:
            table = document[name]
            if not isinstance(table, dict):
                problems.append(Problem((name,), f"is a table: write [{name}]"))
                continue
            values[name] = kind(**convert(kind, table, (name,), problems))
    programs = plausible.programs(document.get("programs", {}), problems)
    lists = plausible.lists(document.get("lists", {}), problems)
    rules, wrong = rule_files.load(document.get("rule", []), source, user=False, programs=programs, lists=lists)
    problems += wrong
    scanners = plausible.scanners(document.get("scanner", []), problems)
    config = Config(**values, programs=programs, lists=lists, scanners=scanners, rules=rules)
    problems += plausible.across(config)
    return config, problems


def personal(path: str, config: Config, uid: int, domain: bool = False) -> Personal:
    """A user's own file as the user ``uid`` may have it, or a domain's; a missing file is an empty one.

    Whatever is wrong with it is said in ``error`` and costs only the user's own rules. Raises Deferred on an error of
    the system that may pass.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Personal()
    except OSError as error:
        if is_passing(error):
            raise Deferred(f"{path}: {error.strerror}") from error
        if error.errno == errno.ELOOP:  # what O_NOFOLLOW says (open(2))
            return Personal(error="is a symbolic link")
        return Personal(error=f"cannot be read: {error.strerror}")
    try:
        state = os.fstat(fd)
        if trouble := distrust(state, uid):
            return Personal(error=trouble)
        with open(fd, "rb", closefd=False) as file:
            text = file.read(USER_FILE_CAP + 1)
    except OSError as error:
        if is_passing(error):
            raise Deferred(f"{path}: {error.strerror}") from error
        return Personal(error=f"cannot be read: {error.strerror}")
    finally:
        os.close(fd)
    return as_applied(*parse_personal(text, os.path.basename(path), config, domain))


def as_applied(own: Personal, problems: list[Problem]) -> Personal:
    """What a delivery takes from a file that was parsed: all of it, or where it has errors the first of them alone."""
    errors = [problem for problem in problems if not problem.warning]
    if not errors:
        return own
    more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
    return Personal(error=f"{where(errors[0])}{errors[0].text}{more}")


def distrust(state: os.stat_result, uid: int) -> str:
    """Why a user's file must not be used, "" if it may: only root and the user ``uid`` may have written it."""
    if not stat.S_ISREG(state.st_mode):
        return "is not a regular file"
    if state.st_uid not in (0, uid):
        return "does not belong to the mailbox's owner"
    if state.st_mode & 0o022:
        return "is writable by others; chmod go-w"
    if state.st_size > USER_FILE_CAP:
        return "is larger than 256 KiB"
    return ""


def parse_personal(text: bytes, source: str, config: Config, domain: bool = False) -> tuple[Personal, list[Problem]]:
    """What a user's file says, or a domain's, which may set all of SETTABLE; and all its problems.

    An empty file is fine. ``config`` has what holds without the file.
    """
    document, problems = _toml(text)
    if document is None:
        return Personal(), problems
    programs = [name for name in config.user.may_run if name in config.programs]
    rules, wrong = rule_files.load(document.get("rule", []), source, user=True, programs=programs, lists=config.lists)
    problems += wrong
    own: dict[str, Any] = {}
    for name, table in document.items():
        if name == "rule":
            continue
        if name not in SETTABLE or not isinstance(table, dict):
            problems.append(Problem((name,), "only the site sets this; a user's file has [[rule]] tables"))
            continue
        known = getattr(config, name)
        if known is None:
            problems.append(Problem((name,), f"the site has no [{name}], so this does nothing", warning=True))
            continue
        kind = type(known)
        allowed = [key for key in SETTABLE[name] if domain or f"{name}.{key}" in config.user.may_set]
        refused = [key for key in table if key in names(kind) and key not in allowed]
        problems += [
            Problem((name, key), "only the site sets this" + ("" if domain else " ([user] may-set)")) for key in refused
        ]
        mine = {key: value for key, value in table.items() if key not in refused}
        own[name] = msgspec.structs.replace(known, **convert(kind, mine, (name,), problems))
    return Personal(rules, **own), problems


def _toml(text: bytes) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        return tomllib.loads(text.decode("utf-8")), []
    except UnicodeDecodeError as error:
        lines = text[: error.start].split(b"\n")
        words = f"is not UTF-8 at byte {error.start + 1} (at line {len(lines)}, column {len(lines[-1]) + 1})"
        return None, [Problem((), words)]
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of 5,000 digits
        hint = "; it begins with a byte-order mark: save it without" if text.startswith(codecs.BOM_UTF8) else ""
        return None, [Problem((), f"is not TOML: {error}{hint}")]
