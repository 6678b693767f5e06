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
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import msgspec

from deliver.errors import Deferred, NotConfigured
from deliver.message import is_passing
from deliver.rules import load as rule_files
from deliver.rules import placeholders
from deliver.rules.model import Rule, folder_problem
from deliver.units import parse_limit, parse_size, parse_span
from deliver.values import Problem
from quarantine.store import KINDS

DEFAULT_PATH = "/etc/deliver/mailfilter.toml"

USER_FILE_CAP = 256 * 1024
"""Bytes a user's file may have; the longest of 33 real maildrop filters has 40 KB."""

_ADDRESS = re.compile(r"[!-?A-~]+@[!-?A-~]+")

NOTICE_WORDS = tuple("what event reason from to subject date id virus size message-id".split())
"""What a template of [notices] may have in braces."""

_LARGEST_CODE = 255  # of a program that exits (exit(3))

LONGEST_DEADLINE = 900
"""Seconds. Postfix kills a command after 1000 (command_time_limit) and bounces the message."""


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


class VirusScanner(Table, frozen=True):
    """What every scanner for viruses has."""

    max_size: Size = Size(25 * 1024 * 1024)
    timeout: Span = Span(150)
    on_virus: Literal["quarantine", "discard", "bounce", "mark"] = "quarantine"
    on_failure: Literal["defer", "deliver", "quarantine"] = "defer"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class SpamScanner(Table, frozen=True):
    """What every scanner for spam has."""

    max_size: Size = Size(256 * 1024)
    timeout: Span = Span(120)
    user: str = ""
    on_failure: Literal["defer", "deliver", "quarantine"] = "deliver"
    defer_for: Span = Span(2 * 86400)
    on_skipped: Literal["deliver", "quarantine", "bounce"] = "deliver"


class Clamd(VirusScanner, frozen=True):
    """The table [clamd]."""

    address: Any = ("unix:/run/clamav/clamd.ctl",)


class Spamd(SpamScanner, frozen=True):
    """The table [spamd]."""

    address: Any = ("tcp:127.0.0.1:783",)


class Command(VirusScanner, frozen=True):
    """A [[scanner]] of kind "command": a program."""

    kind: Literal["command"] = "command"
    name: str = ""
    preset: Literal["", "clamdscan", "clamscan", "f-prot", "savscan", "uvscan"] = ""
    command: tuple[str, ...] = ()
    codes: dict[str, Literal["clean", "virus", "skipped", "failed"]] = {}
    pattern: str = ""


class Icap(VirusScanner, frozen=True):
    """A [[scanner]] of kind "icap"."""

    kind: Literal["icap"] = "icap"
    name: str = ""
    address: Any = ("tcp:127.0.0.1:1344",)
    service: str = "avscan"
    method: Literal["RESPMOD", "REQMOD"] = "RESPMOD"
    preview: Size = Size(1024)
    max_size: Size = Size(5 * 1024 * 1024)


class Rspamd(SpamScanner, frozen=True):
    """A [[scanner]] of kind "rspamd"."""

    kind: Literal["rspamd"] = "rspamd"
    name: str = ""
    address: Any = ("tcp:127.0.0.1:11333",)
    soft_reject: Literal["failed", "clean"] = "failed"
    max_size: Size = Size(10 * 1024 * 1024)


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
    keep_by: dict[str, Span] = {}

    def keep_for(self, kind: str, recipient: str) -> float:
        """Seconds for which mail held for a reason of that kind (quarantine.store.KINDS) stays: the most specific key.

        "virus a@example.org" is before "virus example.org", these are before the address, the domain and the kind.
        """
        whose = (recipient.lower(), recipient.rpartition("@")[2].lower())
        for key in (*(f"{kind} {one}" for one in whose), *whose, kind):
            if key in self.keep_by:
                return self.keep_by[key]
        return self.keep


Measure = Literal["quarantine", "bounce", "discard", "mark", "ignore"]
"""What may be done with a message that [attachments] objects to."""


class Attachments(Table, frozen=True):
    """The table [attachments]. ``forbidden`` are globs of file names, ``types`` globs of media types as detected."""

    forbidden: tuple[str, ...] = ("*.exe", "*.scr", "*.pif")
    tricks: tuple[Literal["double-extension", "clsid", "too-long", "disguised"], ...] = (
        "double-extension",
        "clsid",
        "too-long",
        "disguised",
    )
    types: tuple[str, ...] = ()
    on_forbidden: Measure = "quarantine"
    on_encrypted: Measure = "mark"
    on_macro: Measure = "mark"
    on_ambiguous: Measure = "quarantine"
    on_too_big: Measure = "mark"

    def measure(self, kind: str) -> str:
        """What the setting for this kind of objection says."""
        return str(getattr(self, f"on_{kind.replace('-', '_')}"))


class Forward(Table, frozen=True):
    """The table [forward]."""

    sender: Literal["keep"] | tuple[str, ...] = "keep"


class Authentication(Table, frozen=True):
    """The table [authentication]."""

    name: str = "deliver.{hostname}"
    trusted: tuple[str, ...] = ()

    def ours(self) -> str:
        """The authserv-id (RFC 8601 section 2.5) under which we write."""
        return self.name.replace("{hostname}", os.uname().nodename)


class Dkim(Table, frozen=True):
    """The table [dkim]: what verifying a message's signatures may cost."""

    timeout: Span = Span(10)
    max_size: Size = Size(10 * 1024 * 1024)


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


class Expire(Table, frozen=True):
    """The table [expire], for `deliver expire`: how long mail stays; no time at all is for ever.

    ``apart`` are patterns of directories, those that hold a Maildir, which are left alone.
    """

    read: Span = Span(0)
    unread: Span = Span(365 * 86400)
    sent: Span = Span(180 * 86400)
    trash: Span = Span(14 * 86400)
    spam: Span = Span(14 * 86400)
    apart: tuple[str, ...] = msgspec.field(default=(), name="except")


class Learn(Table, frozen=True):
    """The table [learn], for `deliver learn`: what is told to spamd, and how fast.

    ``ignore`` are patterns of folders that say nothing; ``apart`` patterns of directories that hold a Maildir.
    """

    after: Span = Span(86400)
    most: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 500
    pause: Span = Span(0.1)
    ignore: tuple[str, ...] = (
        *("Trash*", "Deleted*", "Drafts*", "Sent*"),
        *("Papierkorb*", "Gel*scht*", "Corbeille*", "Papelera*", "Cestino*", "Prullenbak*"),
    )
    apart: tuple[str, ...] = msgspec.field(default=(), name="except")


class Notices(Table, frozen=True):
    """The table [notices]: who hears of mail that did not arrive, and in which words."""

    to: tuple[Literal["admin", "recipient", "sender"], ...] = ()
    about: tuple[Literal["virus", "policy", "unscanned", "spam", "quota", "rule"], ...] = ("virus", "policy")
    admin: str = ""
    sender: str = msgspec.field(default="postmaster@{domain}", name="from")
    every: Span = Span(3600)
    subject: str = "Message {what}: {subject}"
    text: str = ""
    html: str = ""


class Log(Table, frozen=True):
    """The table [log]. The last two are qmail-scanner's own logs, for programs that read them."""

    to: str = "syslog"
    subject: bool = False
    quarantine_log: str = ""
    mailstats: str = ""


class User(Table, frozen=True):
    """The table [user]: what a user's own file may set beside rules, and the programs that its rules may name."""

    may_set: tuple[
        Literal[
            "spam.required-score",
            "spam.folder",
            "spam.mark-read",
            "spam.delete-above",
            "attachments.on-forbidden",
            "attachments.on-encrypted",
            "attachments.on-macro",
            "attachments.on-ambiguous",
            "attachments.on-too-big",
        ],
        ...,
    ] = ("spam.required-score",)
    may_run: tuple[str, ...] = ()


class Programs(dict[str, tuple[str, ...]]):
    """The table [programs]: argument lists by the names that rules say."""


class Lists(dict[str, str]):
    """The table [lists]: files of addresses by the names that rules say; a bare file name lies beside each Maildir."""


class Config(Table, frozen=True):
    """A whole configuration. ``clamd`` and ``spamd`` are None where the table is missing: no table, no function."""

    maildir: str = "Maildir"
    user_rules: str = "mailfilter.toml"
    domain_rules: str = ""
    deadline: Span = Span(300)
    clamd: Clamd | None = None
    spamd: Spamd | None = None
    spam: Spam = Spam()
    quota: Quota = Quota()
    quarantine: Quarantine = Quarantine()
    attachments: Attachments | None = None
    forward: Forward = Forward()
    authentication: Authentication = Authentication()
    service: Service = Service()
    users: Users | None = None
    maildrop: Maildrop = Maildrop()
    expire: Expire | None = None
    learn: Learn = Learn()
    notices: Notices = Notices()
    log: Log = Log()
    user: User = User()
    programs: Programs = Programs()
    lists: Lists = Lists()
    scanners: tuple[Command | Icap | Rspamd, ...] = ()
    dkim: Dkim = Dkim()
    rules: tuple[Rule, ...] = ()


SETTABLE = {
    "spam": ("required-score", "folder", "mark-read", "delete-above"),
    "attachments": ("on-forbidden", "on-encrypted", "on-macro", "on-ambiguous", "on-too-big"),
}
"""The keys, by their tables, that another file than the site's can ever set."""

_TABLES: dict[str, type[Table]] = {
    "dkim": Dkim,
    "clamd": Clamd,
    "spamd": Spamd,
    "spam": Spam,
    "quota": Quota,
    "quarantine": Quarantine,
    "attachments": Attachments,
    "forward": Forward,
    "authentication": Authentication,
    "service": Service,
    "users": Users,
    "maildrop": Maildrop,
    "expire": Expire,
    "learn": Learn,
    "notices": Notices,
    "log": Log,
    "user": User,
}


_KINDS_OF_SCANNER: dict[str, type[Command | Icap | Rspamd]] = {"command": Command, "icap": Icap, "rspamd": Rspamd}


class Personal(NamedTuple):
    """What a user's own file says: rules, settings that the site lets users have, and what was wrong.

    ``error`` is a line for the X-Filter-Error header, "" where the file is fine or missing. A table that it does not
    have is None.
    """

    rules: tuple[Rule, ...] = ()
    spam: Spam | None = None
    error: str = ""
    attachments: Attachments | None = None


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
    others = {*_TABLES, "rule", "programs", "lists", "scanner"}
    top = {key: value for key, value in document.items() if key not in others}
    known = (*_names(Config), "rule", "scanner")
    values.update(_convert(Config, top, (), problems, known))
    for name, kind in _TABLES.items():
        if name in document:
            table = document[name]
            if not isinstance(table, dict):
                problems.append(Problem((name,), f"is a table: write [{name}]"))
                continue
            values[name] = kind(**_convert(kind, table, (name,), problems))
    programs = _programs(document.get("programs", {}), problems)
    lists = _lists(document.get("lists", {}), problems)
    rules, wrong = rule_files.load(document.get("rule", []), source, user=False, programs=programs, lists=lists)
    problems += wrong
    scanners = _scanners(document.get("scanner", []), problems)
    config = Config(**values, programs=programs, lists=lists, scanners=scanners, rules=rules)
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
    problems += _about_people(config)
    problems += _about_attachments(config)
    if config.domain_rules and not re.fullmatch(r"/.*\{domain\}.*", config.domain_rules):
        problems.append(Problem(("domain-rules",), 'is an absolute path with the domain in it, "/dir/{domain}.toml"'))
    problems += [
        Problem(("user", "may-run"), f'[programs] has no "{name}"')
        for name in config.user.may_run
        if name not in config.programs
    ]
    if config.spam.trust_header and (config.spamd or any(isinstance(one, Rspamd) for one in config.scanners)):
        problems.append(
            Problem(("spam", "trust-header"), "counts for nothing where spamd or rspamd is configured", warning=True)
        )
    return problems


def _about_attachments(config: Config) -> Iterator[Problem]:
    """Patterns that are none, or that others write in another way."""
    if config.attachments is None:
        return
    for pattern in config.attachments.forbidden:
        if not pattern.strip():
            yield Problem(("attachments", "forbidden"), 'expected patterns of file names such as "*.exe", not ""')
        elif re.fullmatch(r"\.\w+", pattern):
            words = f'"{pattern}" is a file of just this name; did you mean "*{pattern}"?'
            yield Problem(("attachments", "forbidden"), words, warning=True)
    for pattern in config.attachments.types:
        if not re.fullmatch(r"[^\s/]+/[^\s/]+", pattern):
            words = f'expected media types such as "application/java-archive" or "video/*", not "{pattern}"'
            yield Problem(("attachments", "types"), words)


def _about_people(config: Config) -> Iterator[Problem]:
    """What is wrong with who gets notices, and how long held mail stays."""
    notices = config.notices
    if "admin" in notices.to and not _ADDRESS.fullmatch(notices.admin):
        yield Problem(("notices", "admin"), 'expected an address such as "postmaster@example.org", since `to` names it')
    if not _ADDRESS.fullmatch(notices.sender.replace("{domain}", "x")):
        yield Problem(("notices", "from"), 'expected an address such as "postmaster@{domain}"')
    for key in ("text", "html"):
        if (path := getattr(notices, key)) and not path.startswith("/"):
            yield Problem(("notices", key), f'expected the whole path of a template, not "{path}"')
    try:
        placeholders.check(notices.subject, NOTICE_WORDS)
    except ValueError as error:
        yield Problem(("notices", "subject"), str(error))
    for key in ("quarantine_log", "mailstats"):
        if (path := getattr(config.log, key)) and not path.startswith("/"):
            yield Problem(("log", key.replace("_", "-")), f'expected the whole path of a file, not "{path}"')
    for key in config.quarantine.keep_by:
        kind, _, whose = key.rpartition(" ")
        if not (key in KINDS or ((not kind or kind in KINDS) and re.fullmatch(r"[^\sA-Z]*[.@][^\sA-Z]*", whose))):
            words = f'expected one of {", ".join(KINDS)}, a domain or address in small letters, or "virus example.org"'
            yield Problem(("quarantine", "keep-by", key), f'{words}, not "{key}"')


def _programs(table: Any, problems: list[Problem]) -> Programs:
    if not isinstance(table, dict):
        problems.append(Problem(("programs",), "is a table: write [programs]"))
        return Programs()
    programs = Programs()
    for name, argv in table.items():
        if not (isinstance(argv, list) and argv and all(isinstance(one, str) and "\0" not in one for one in argv)):
            problems.append(Problem(("programs", name), 'expected a list, such as ["/usr/local/bin/ticket", "--new"]'))
        elif not argv[0].startswith("/"):
            problems.append(Problem(("programs", name), f'expected the whole path of the program, not "{argv[0]}"'))
        else:
            programs[name] = tuple(argv)
    return programs


def settings_of(config: Config, scanner: str) -> VirusScanner | SpamScanner | None:
    """The settings of the scanner of this name; None for a name that is none, such as a trusted header's."""
    named = {"clamd": config.clamd, "spamd": config.spamd, **{one.name: one for one in config.scanners}}
    return named.get(scanner)


def _scanners(tables: Any, problems: list[Problem]) -> tuple[Command | Icap | Rspamd, ...]:
    if not isinstance(tables, list):
        problems.append(Problem(("scanner",), "is an array of tables: write [[scanner]]"))
        return ()
    found: list[Command | Icap | Rspamd] = []
    for index, table in enumerate(tables):
        path = ("scanner", index)
        kind = _KINDS_OF_SCANNER.get(str(table.get("kind"))) if isinstance(table, dict) else None
        if kind is None:
            words = f"expected a table with one of {', '.join(_KINDS_OF_SCANNER)} as its kind"
            problems.append(Problem((*path, "kind"), words))
            continue
        before = len(problems)
        one = kind(**_convert(kind, table, path, problems))
        if len(problems) == before:
            names = [each.name for each in found]
            problems += [Problem((*path, key), words) for key, words in _about_scanner(one, names)]
        found.append(one)
    return tuple(found)


def _about_scanner(one: Command | Icap | Rspamd, names: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a scanner that its types do not tell: keys and words."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", one.name):
        yield "name", 'each scanner needs a name of letters, digits, "-", "_" and ".", such as "sophos"'
    elif one.name in ("clamd", "spamd", "attachments", *names):
        yield "name", f'another scanner has the name "{one.name}" already'
    if isinstance(one, Icap) and not re.fullmatch(r"[!-~]{1,200}", one.service):
        yield "service", 'expected the last part of its address: "avscan" of icap://host:1344/avscan'
    if not isinstance(one, Command):
        return
    if not one.preset and not one.command:
        yield "command", 'expected a list, such as ["/usr/local/bin/scan", "{file}"], or a `preset`'
    if not one.preset and "clean" not in one.codes.values():
        yield "codes", 'expected the exit codes that mean something, such as { "0" = "clean", "1" = "virus" }'
    if any("\0" in part for part in one.command) or one.command[:1] == ("",):
        yield "command", "expected a program and its arguments"
    for code in one.codes:
        if not re.fullmatch(r"[0-9]{1,3}", code) or int(code) > _LARGEST_CODE:
            yield "codes", f'expected exit codes from "0" to "{_LARGEST_CODE}", got "{code}"'
    if one.pattern:
        import re2

        options = re2.Options()
        options.log_errors = False
        try:
            re2.compile(one.pattern, options)
        except re2.error as error:
            said = error.args[0] if error.args else error
            yield "pattern", f"is refused: {said.decode() if isinstance(said, bytes) else said}"


def _lists(table: Any, problems: list[Problem]) -> Lists:
    if not isinstance(table, dict):
        problems.append(Problem(("lists",), "is a table: write [lists]"))
        return Lists()
    lists = Lists()
    for name, path in table.items():
        if isinstance(path, str) and re.fullmatch(r"/[^\0]*[^\0/]|[A-Za-z0-9_][A-Za-z0-9_.-]*", path):
            lists[name] = path
        else:
            words = 'expected a whole path ("/etc/deliver/friends"), or a file name alone for one beside each Maildir'
            problems.append(Problem(("lists", name), words))
    return lists


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
    own, problems = parse_personal(text, os.path.basename(path), config, domain)
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


def parse_personal(
    text: bytes, source: str, config: Config, domain: bool = False
) -> tuple[Personal, list[Problem]]:
    """What a user's file says, or a domain's, which may set all of SETTABLE; and all its problems.

    An empty file is fine. ``config`` has what holds without the file.
    """
    document, problems = _toml(text)
    if document is None:
        return Personal(), problems
    programs = [name for name in config.user.may_run if name in config.programs]
    rules, wrong = rule_files.load(
        document.get("rule", []), source, user=True, programs=programs, lists=config.lists
    )
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
        refused = [key for key in table if key in _names(kind) and key not in allowed]
        problems += [
            Problem((name, key), "only the site sets this" + ("" if domain else " ([user] may-set)"))
            for key in refused
        ]
        mine = {key: value for key, value in table.items() if key not in refused}
        own[name] = msgspec.structs.replace(known, **_convert(kind, mine, (name,), problems))
    return Personal(rules, **own), problems


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
    path: tuple[str | int, ...],
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
            place = f"[{place}]" if len(path) > 1 else place
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
    if words.startswith("Invalid enum value") and get_origin(kind) is tuple:
        words = re.sub(r" - at `\$.*`$", "", words).replace("Invalid enum value ", "")
        return f"expected some of {', '.join(get_args(get_args(kind)[0]))}, not {words}"
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
