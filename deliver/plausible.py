"""What is wrong with settings beyond their types: names, patterns, paths, and keys that do not go together."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from deliver.rules import placeholders
from deliver.rules.matching import closest, quoted
from deliver.settings import (
    KINDS_OF_SCANNER,
    NOTICE_WORDS,
    USER_PLACEHOLDERS,
    Command,
    Config,
    Icap,
    Lists,
    Programs,
    Rspamd,
    Spam,
    SpamScanner,
    VirusScanner,
)
from deliver.tables import convert, names
from deliver.values import Problem
from quarantine.store import KINDS

_ADDRESS = re.compile(r"[!-?A-~]+@[!-?A-~]+")

_LARGEST_CODE = 255  # of a program that exits (exit(3))

_LOGS = ("syslog", "stderr")

LONGEST_DEADLINE = 900
"""Seconds. Postfix kills a command after 1000 (command_time_limit) and bounces the message."""


def across(config: Config) -> list[Problem]:
    """What is wrong with keys that are right by themselves."""
    problems = []
    if config.deadline > LONGEST_DEADLINE:
        problems.append(
            Problem(("deadline",), "is at most 15 min: Postfix kills a command after 1000 s and bounces its message")
        )
    directory = config.quarantine.directory
    if not re.fullmatch(r"(\{maildir\})?/.*[^/].*", directory) or ".." in directory.split("/"):
        problems.append(Problem(("quarantine", "directory"), 'is an absolute path, or begins with "{maildir}/"'))
    elif directory.startswith("{maildir}/."):
        words = "IMAP servers show a directory whose name begins with a dot as a folder"
        problems.append(Problem(("quarantine", "directory"), words, warning=True))
    problems += _about_paths(config)
    problems += _about_scanning(config)
    problems += _about_names(config)
    problems += _about_people(config)
    problems += _about_exceptions(config)
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
    problems += _about_points(config)
    problems += _about_service(config)
    return problems


def _about_service(config: Config) -> Iterator[Problem]:
    """Where it listens, and how LMTP finds users."""
    if config.service.socket and not re.fullmatch(r"/.{1,106}", config.service.socket):
        yield Problem(("service", "socket"), 'expected an absolute path (107 bytes at most), or "" for none')
    for key in ("lmtp", "metrics"):
        for address in getattr(config.service, key):
            if re.match(r"tcp:(?!127\.|localhost:|\[?::1\]?:)", address):
                words = f"{address} can be reached from other hosts, and nobody is asked who he is: use 127.0.0.1"
                yield Problem(("service", key), words, warning=True)
    users = config.users
    if users is None:
        return
    if bool(users.maildir) + bool(users.command) + users.passwd > 1:
        yield Problem(("users",), "expected one of the keys maildir, command and passwd, not several")
    if users.maildir and not users.maildir.startswith("/"):
        yield Problem(("users", "maildir"), 'expected an absolute path, such as "/home/{user}/Maildir"')
    for key in ("maildir", "command"):
        for unknown in re.findall(r"\{\w*\}", str(getattr(users, key))):
            if unknown not in USER_PLACEHOLDERS:
                words = f"{unknown} means nothing here; known are {', '.join(USER_PLACEHOLDERS)}"
                yield Problem(("users", key), words)


def _about_paths(config: Config) -> Iterator[Problem]:
    """Paths that lead nowhere, or to another place for each who delivers."""
    for key, path in (("maildir", config.maildir), ("user-rules", config.user_rules)):
        if re.match(r"~|.*[{$]", path):
            words = f'nothing is replaced in "{path}"; write a whole path, or a relative one such as "Maildir"'
            yield Problem((key,), words if key == "maildir" else words.replace("Maildir", "mailfilter.toml"))
    if not config.maildir:
        yield Problem(("maildir",), 'expected the path of the Maildir, such as "Maildir"')
    for path in config.maildrop.replaces:
        if not path.startswith("/"):
            yield Problem(("maildrop", "replaces"), f'expected the whole path of a filter file, not "{path}"')
    if config.maildrop.program and not config.maildrop.program.startswith("/"):
        words = f'expected the whole path of the real maildrop, not "{config.maildrop.program}"'
        yield Problem(("maildrop", "program"), words)
    where = config.log.to
    if where not in _LOGS and not where.startswith("/"):
        # Relative, it is a file in each home under qmail, in the queue's directory under Postfix.
        near = closest(where, _LOGS)
        words = f'expected "syslog", "stderr" or the whole path of a file, not "{where}"{near}'
        yield Problem(("log", "to"), words, warning=not near and bool(where))


def _about_scanning(config: Config) -> Iterator[Problem]:
    """Times and sizes with which a scanner could never answer, or too late to matter."""
    if config.deadline <= 0:
        yield Problem(("deadline",), 'expected more than 0 s, such as "5 min"')
    if config.dkim.timeout <= 0:
        yield Problem(("dkim", "timeout"), 'expected more than 0 s, such as "10 s"')
    scanners: list[tuple[tuple[str | int, ...], VirusScanner | SpamScanner | None]] = [
        (("clamd",), config.clamd),
        (("spamd",), config.spamd),
        *((("scanner", index), one) for index, one in enumerate(config.scanners)),
    ]
    for path, one in scanners:
        if one is None:
            continue
        if one.timeout <= 0:
            yield Problem((*path, "timeout"), 'expected more than 0 s, such as "60 s"')
        elif one.timeout >= config.deadline > 0:
            words = f"is not below `deadline`, {config.deadline:g} s: should it hang, mail waits"
            yield Problem((*path, "timeout"), f"{words}, whatever on-failure says", warning=True)
        if one.max_size == 0:
            yield Problem((*path, "max-size"), "with 0 no message at all is scanned", warning=True)
        if isinstance(one, SpamScanner) and re.search(r"[{}]", one.user.replace("{recipient}", "")):
            yield Problem((*path, "user"), f'only {{recipient}} is replaced in it, nothing else in "{one.user}"')


def _about_names(config: Config) -> Iterator[Problem]:
    """Names that nothing can have."""
    ours = config.authentication.name
    if not re.fullmatch(r"[!-:<-z|~]+", ours.replace("{hostname}", "x")):
        words = f'expected a name such as "mx.example.org" or "deliver.{{hostname}}", not "{ours}"'
        yield Problem(("authentication", "name"), words)
    header = config.spam.trust_header
    if header and not re.fullmatch(r"[!-9;-~]+", header):
        words = f'expected a header field\'s name without a colon, such as "X-Spam-Status", not "{header}"'
        yield Problem(("spam", "trust-header"), words)


def _about_points(config: Config) -> Iterator[Problem]:
    """Each scanner has points of its own: SpamAssassin says spam from 5 on, rspamd rejects from 15 on."""
    required = config.spam.required_score
    if required != "scanner" and config.spam.delete_above < required:
        words = f"is below required-score, {required:g}: all spam is deleted, and none comes into the folder"
        yield Problem(("spam", "delete-above"), words, warning=True)
    unset = config.spam.delete_above == Spam().delete_above
    for index, one in enumerate(config.scanners):
        if isinstance(one, Rspamd) and unset:
            words = (
                f"[spam] delete-above is {config.spam.delete_above:g}, which was chosen for SpamAssassin: mail is "
                "deleted that rspamd would only mark; write at least rspamd's `reject` (15 by default)"
            )
            yield Problem(("scanner", index), words, warning=True)


def _about_attachments(config: Config) -> Iterator[Problem]:
    """Patterns that are none, or that others write in another way."""
    if config.attachments is None:
        return
    for pattern in config.attachments.forbidden:
        if not pattern.strip():
            yield Problem(("attachments", "forbidden"), 'expected patterns of file names such as "*.exe", not ""')
        elif re.fullmatch(r"\.\w+|\w{2,4}", pattern):
            words = f'"{pattern}" is a file of just this name; did you mean "*.{pattern.removeprefix(".")}"?'
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


def _about_exceptions(config: Config) -> Iterator[Problem]:
    """What can be no mailbox's directory spares nobody, and that would be seen when the mail is gone."""
    for table, patterns in (("expire", config.expire.apart if config.expire else ()), ("learn", config.learn.apart)):
        for pattern in patterns:
            if not re.match(r"/|\*", pattern):
                words = f'expected directories, such as "/home/boss" or "*/example.org/boss", not "{pattern}"'
                yield Problem((table, "except"), words)


def programs(table: Any, problems: list[Problem]) -> Programs:
    """The table [programs]; what is wrong goes to ``problems``."""
    if not isinstance(table, dict):
        problems.append(Problem(("programs",), "is a table: write [programs]"))
        return Programs()
    found = Programs()
    for name, argv in table.items():
        if not (isinstance(argv, list) and argv and all(isinstance(one, str) and "\0" not in one for one in argv)):
            problems.append(Problem(("programs", name), 'expected a list, such as ["/usr/local/bin/ticket", "--new"]'))
        elif not argv[0].startswith("/"):
            problems.append(Problem(("programs", name), f'expected the whole path of the program, not "{argv[0]}"'))
        else:
            found[name] = tuple(argv)
    return found


def scanners(tables: Any, problems: list[Problem]) -> tuple[Command | Icap | Rspamd, ...]:
    """The tables [[scanner]]; what is wrong goes to ``problems``."""
    if not isinstance(tables, list):
        problems.append(Problem(("scanner",), "is an array of tables: write [[scanner]]"))
        return ()
    found: list[Command | Icap | Rspamd] = []
    for index, table in enumerate(tables):
        path = ("scanner", index)
        said = table.get("kind") if isinstance(table, dict) else None
        kind_of_scanner = KINDS_OF_SCANNER.get(said) if isinstance(said, str) else None
        if kind_of_scanner is None:
            words = f"expected a table with one of {', '.join(KINDS_OF_SCANNER)} as its kind"
            if isinstance(said, str):
                words += f", not {quoted(said)}{_kind_meant(said)}"
            problems.append(Problem((*path, "kind"), words))
            continue
        before = len(problems)
        one = kind_of_scanner(**convert(kind_of_scanner, table, path, problems))
        if len(problems) == before:
            others = [each.name for each in found]
            problems += [Problem((*path, key), words) for key, words in _about_scanner(one, others)]
        found.append(one)
    return tuple(found)


def _kind_meant(said: str) -> str:
    if said in get_args(names(Command)["preset"].type):
        return f'; write kind = "command" and preset = "{said}"'
    if said in ("clamd", "spamd"):
        return f"; for that one there is the table [{said}]"
    return closest(said, KINDS_OF_SCANNER)


def _about_scanner(one: Command | Icap | Rspamd, others: list[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a scanner that its types do not tell: keys and words."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", one.name):
        yield "name", 'each scanner needs a name of letters, digits, "-", "_" and ".", such as "sophos"'
    elif one.name in ("clamd", "spamd", "attachments", *others):
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


def lists(table: Any, problems: list[Problem]) -> Lists:
    """The table [lists]; what is wrong goes to ``problems``."""
    if not isinstance(table, dict):
        problems.append(Problem(("lists",), "is a table: write [lists]"))
        return Lists()
    found = Lists()
    for name, path in table.items():
        if isinstance(path, str) and re.fullmatch(r"/[^\0]*[^\0/]|[A-Za-z0-9_][A-Za-z0-9_.-]*", path):
            found[name] = path
        else:
            words = 'expected a whole path ("/etc/deliver/friends"), or a file name alone for one beside each Maildir'
            problems.append(Problem(("lists", name), words))
    return found
