"""The site's configuration and a user's own: TOML in, typed settings or a list of everything that is wrong out.

Each table is one class; a key is its field, spelled with hyphens. Values are converted one by one, so that a file with
ten errors gives ten problems. Neither tomllib nor msgspec knows lines: a Problem says by its keys where it is, and
`deliver check` finds the line for it.
"""

import math
import os
import re
import stat
import tomllib
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from deliver.errors import Deferred, NotConfigured
from deliver.message import is_passing
from deliver.rules import load as rule_files
from deliver.rules.model import Rule, folder_problem
from deliver.units import parse_limit, parse_size, parse_span
from deliver.values import Problem

DEFAULT_PATH = "/etc/deliver/mailfilter.toml"

USER_FILE_CAP = 256 * 1024
"""Bytes a user's file may have; the longest of 33 real maildrop filters has 40 KB."""

LONGEST_DEADLINE = 900
"""Seconds. Postfix kills a command after 1000 (command_time_limit) and bounces the message."""

LATER = ("attachments", "dkim", "expire", "learn", "lists", "notices", "programs", "scanner")
"""Tables of the contract that nothing acts on yet."""


class Size(int):
    """Bytes, written "256 KiB"."""


class Span(float):
    """Seconds, written "5 min"."""


class Folder(str):
    """A folder's name as a mail client shows it."""


class Address(str):
    """Where a scanner listens: unix:/path or tcp:host:port."""


class QuotaLimit(str):
    """A limit as the site writes it, "100 MB, 10000 messages"; "" for none."""


class Table(msgspec.Struct, frozen=True, rename="kebab"):
    """What every table is: keys with hyphens for fields with underscores."""


class Clamd(Table, frozen=True):
    """The table [clamd]."""

    address: Any = ("unix:/run/clamav/clamd.ctl",)
    max_size: Size = Size(25 * 1024 * 1024)
    timeout: Span = Span(150)
    on_virus: Literal["quarantine", "discard", "bounce", "mark"] = "quarantine"
    on_failure: Literal["defer", "deliver", "quarantine"] = "defer"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class Spamd(Table, frozen=True):
    """The table [spamd]."""

    address: Any = ("tcp:127.0.0.1:783",)
    max_size: Size = Size(256 * 1024)
    timeout: Span = Span(120)
    user: str = ""
    on_failure: Literal["defer", "deliver", "quarantine"] = "deliver"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class Spam(Table, frozen=True):
    """The table [spam]."""

    required_score: Literal["scanner"] | float = "scanner"
    folder: Folder = Folder("Spam")
    delete_above: float = 12.0
    mark_read: bool = False
    trust_header: str = ""


class Quota(Table, frozen=True):
    """The table [quota]."""

    limit: QuotaLimit = QuotaLimit("")
    command: tuple[str, ...] = ()
    warn_at: Annotated[int, msgspec.Meta(ge=1, le=100)] = 90
    warning: str = (
        "Your mailbox is nearly full.\n\nPlease delete messages that you no longer need, and empty the trash."
    )
    over: Literal["bounce", "defer"] = "bounce"
    spam_over: Literal["quarantine", "discard", "defer"] = "quarantine"


class Quarantine(Table, frozen=True):
    """The table [quarantine]."""

    directory: str = "{maildir}/deliver/quarantine"
    keep: Span = Span(30 * 86400)


class Forward(Table, frozen=True):
    """The table [forward]."""

    sender: Literal["keep"] | tuple[str, ...] = "keep"


class Authentication(Table, frozen=True):
    """The table [authentication]."""

    name: str = "deliver.{hostname}"
    trusted: tuple[str, ...] = ()


class Service(Table, frozen=True):
    """The table [service]."""

    socket: str = "/run/deliver/deliver.sock"
    lmtp: tuple[str, ...] = ("unix:/run/deliver/lmtp.sock",)
    metrics: tuple[str, ...] = ()
    messages: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    bytes: Size = Size(1024 * 1024 * 1024)
    connections: Annotated[int, msgspec.Meta(ge=1, le=10000)] = 200
    idle: Span = Span(300)


class Users(Table, frozen=True):
    """The table [users]."""

    maildir: str = ""
    command: tuple[str, ...] = ()
    passwd: bool = False


class Maildrop(Table, frozen=True):
    """The table [maildrop]: for a host whose qmailadmin calls us by that name."""

    replaces: tuple[str, ...] = ()
    program: str = ""


class Log(Table, frozen=True):
    """The table [log]."""

    to: str = "syslog"
    subject: bool = False


class User(Table, frozen=True):
    """The table [user]: what a user's own file may set beside rules."""

    may_set: tuple[Literal["spam.required-score", "spam.folder", "spam.mark-read", "spam.delete-above"], ...] = (
        "spam.required-score",
    )


class Config(Table, frozen=True):
    """A whole configuration. ``clamd`` and ``spamd`` are None where the table is missing: no table, no function."""

    maildir: str = "Maildir"
    user_rules: str = "mailfilter.toml"
    deadline: Span = Span(300)
    clamd: Clamd | None = None
    spamd: Spamd | None = None
    spam: Spam = Spam()
    quota: Quota = Quota()
    quarantine: Quarantine = Quarantine()
    forward: Forward = Forward()
    authentication: Authentication = Authentication()
    service: Service = Service()
    users: Users | None = None
    maildrop: Maildrop = Maildrop()
    log: Log = Log()
    user: User = User()
    rules: tuple[Rule, ...] = ()


_TABLES: dict[str, type[Table]] = {
    "clamd": Clamd,
    "spamd": Spamd,
    "spam": Spam,
    "quota": Quota,
    "quarantine": Quarantine,
    "forward": Forward,
    "authentication": Authentication,
    "service": Service,
    "users": Users,
    "maildrop": Maildrop,
    "log": Log,
    "user": User,
}


class Personal(NamedTuple):
    """What a user's own file says: rules, settings of [spam] that the site lets users have, and what was wrong.

    ``error`` is a line for the X-Filter-Error header, "" where the file is fine or missing.
    """

    rules: tuple[Rule, ...] = ()
    spam: Spam | None = None
    error: str = ""


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
    if head == "rule" and rest and isinstance(rest[0], int):
        return f"rule {rest[0] + 1}: " + "".join(f"{part}: " for part in rest[1:])
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
    top = {key: value for key, value in document.items() if key not in _TABLES and key not in (*LATER, "rule")}
    known = (*_names(Config), "rule", *LATER)
    values.update(_convert(Config, top, (), problems, known))
    for name, kind in _TABLES.items():
        if name in document:
            table = document[name]
            if not isinstance(table, dict):
                problems.append(Problem((name,), f"is a table: write [{name}]"))
                continue
            values[name] = kind(**_convert(kind, table, (name,), problems))
    problems += [
        Problem((name,), "nothing acts on this table yet in this version", warning=True)
        for name in LATER
        if name in document
    ]
    rules, wrong = rule_files.load(document.get("rule", []), source, user=False)
    problems += wrong
    config = Config(**values, rules=rules)
    problems += _across(config)
    return config, problems


def _across(config: Config) -> list[Problem]:
    problems = []
    if config.deadline > LONGEST_DEADLINE:
        problems.append(
            Problem(("deadline",), "is at most 15 min: Postfix kills a command after 1000 s and bounces its message")
        )
    directory = config.quarantine.directory
    if not re.fullmatch(r"(\{maildir\})?/.*[^/].*", directory) or ".." in directory.split("/"):
        problems.append(Problem(("quarantine", "directory"), 'is an absolute path, or begins with "{maildir}/"'))
    if config.spam.trust_header and config.spamd is not None:
        problems.append(
            Problem(("spam", "trust-header"), "counts for nothing where [spamd] is configured", warning=True)
        )
    return problems


def personal(path: str, config: Config, uid: int) -> Personal:
    """A user's own file as the user ``uid`` may have it; a missing file is an empty one.

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
    own, problems = parse_personal(text, os.path.basename(path), config)
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
        return Personal(error=f"{where(errors[0])}{errors[0].text}{more}")
    return own


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


def parse_personal(text: bytes, source: str, config: Config) -> tuple[Personal, list[Problem]]:
    """What a user's file says, and all its problems. An empty file is fine."""
    document, problems = _toml(text)
    if document is None:
        return Personal(), problems
    rules, wrong = rule_files.load(document.get("rule", []), source, user=True)
    problems += wrong
    spam = None
    for name, table in document.items():
        if name == "rule":
            continue
        if name != "spam" or not isinstance(table, dict):
            problems.append(Problem((name,), "only the site sets this; a user's file has [[rule]] tables"))
            continue
        allowed = [key.partition(".")[2] for key in config.user.may_set]
        refused = [key for key in table if key in _names(Spam) and key not in allowed]
        problems += [Problem(("spam", key), "only the site sets this ([user] may-set)") for key in refused]
        mine = {key: value for key, value in table.items() if key not in refused}
        spam = msgspec.structs.replace(config.spam, **_convert(Spam, mine, ("spam",), problems))
    return Personal(rules, spam), problems


def _toml(text: bytes) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        return tomllib.loads(text.decode("utf-8")), []
    except UnicodeDecodeError as error:
        return None, [Problem((), f"is not UTF-8 at byte {error.start + 1}")]
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of 5,000 digits
        return None, [Problem((), f"is not TOML: {error}")]


def _names(kind: type[Table]) -> dict[str, Any]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _convert(
    kind: type[Table],
    table: dict[str, Any],
    path: tuple[str, ...],
    problems: list[Problem],
    known: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """The fields of ``kind`` that ``table`` sets, by field name; what is wrong goes to ``problems``."""
    fields = _names(kind)
    values = {}
    for key, value in table.items():
        field = fields.get(key)
        if field is None:
            import difflib

            near = difflib.get_close_matches(key, known or tuple(fields), 1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            place = f"[{path[0]}]" if path else "the configuration"
            problems.append(Problem((*path, key), f"{place} has no key of this name{hint}"))
            continue
        try:
            values[field.name] = _value(key, value, field.type)
        except (msgspec.ValidationError, ValueError) as error:
            problems.append(Problem((*path, key), _plainly(str(error), field.type)))
    return values


def _value(key: str, value: Any, kind: Any) -> Any:
    if key == "address":
        given = value if isinstance(value, list) else [value]
        if not given:
            raise ValueError('expected an address like "unix:/run/clamav/clamd.ctl" or "tcp:host:port"')
        return tuple(str(_special(Address, one)) for one in given)
    if isinstance(value, float) and math.isnan(value):  # neither above nor below any score
        raise ValueError("expected a number, got nan")
    return msgspec.convert(value, kind, dec_hook=_special)


def _plainly(words: str, kind: Any) -> str:
    """msgspec's sentence without its own names of types, and with the choices where there are some."""
    if get_origin(kind) is Literal:
        return f"expected one of {', '.join(get_args(kind))}"
    words = re.sub(r" - at `\$.*`$", "", words)
    return re.sub(r"(?i)(expected |got )`([a-z |]+)`", lambda found: found[1].lower() + _kinds(found[2]), words)


def _kinds(names: str) -> str:
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | "))


_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array in []",
    "object": "a table",
    "null": "nothing",
}
"""TOML's words for msgspec's types."""


def _special(kind: type, value: Any) -> Any:
    """Values that are written as text and mean something else. Raises ValueError with what was expected."""
    if kind is Size and isinstance(value, str | int) and not isinstance(value, bool):
        return Size(parse_size(str(value)))
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, got {value!r}")
    if kind is Span:
        return Span(parse_span(value))
    if kind is QuotaLimit:
        parse_limit(value)
    if kind is Folder and (wrong := folder_problem(value)):
        raise ValueError(wrong)
    if kind is Address:
        found = re.fullmatch(r"unix:/.{1,106}|tcp:.+:([0-9]{1,5})", value)
        if not found or (found[1] and not 1 <= int(found[1]) <= 65535):
            raise ValueError(f'expected "unix:/path" (107 bytes at most) or "tcp:host:port", got "{value}"')
    return kind(value)
