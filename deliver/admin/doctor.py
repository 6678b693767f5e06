"""Is each part there, and what to do about what is not. Nothing is changed and nothing is delivered.

Each check is one function and one line of CHECKS. Scanners and mailboxes are asked in doctor_scanners and
doctor_mailboxes.
"""

import contextlib
import importlib.util
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from deliver import config as configuration
from deliver import forward
from deliver.admin import qmailfile, tickbox
from deliver.admin.qmailfile import Kind
from deliver.content import libarchive
from deliver.errors import DeliverError
from deliver.settings import Config
from deliver.units import counted

LOW_MEGABYTES, LOW_FILES = 100, 1000
"""Room in the quarantine's file system below which somebody should know."""

_WAIT = 5.0  # seconds for a door to open


class Said(NamedTuple):
    """What one check found. ``level`` is "ok", "warning" or "problem"; ``advice`` says what to do about it."""

    level: str
    words: str
    advice: str = ""


class Case(NamedTuple):
    """What is examined. ``config`` is None where the file at ``path`` cannot be used.

    ``samples`` are messages: "ham", "spam" (GTUBE) and "virus" (EICAR). ``root`` stands before the paths of the mail
    server's files and SpamAssassin's rules; ``now`` in seconds since the epoch. ``command`` is the one that delivers.
    """

    path: str
    config: Config | None
    samples: Mapping[str, bytes]
    root: str = "/"
    now: float = 0.0
    command: str = "/usr/local/bin/deliver"

    @property
    def settings(self) -> Config:
        """The configuration, or the defaults."""
        return self.config or Config()


def the_configuration(case: Case) -> Iterator[Said]:
    """Everything wrong with the file, and with who may read and write it."""
    try:
        problems = configuration.read(case.path)[1]
    except DeliverError as error:
        yield Said("problem", error.detail)
        return
    errors = [problem for problem in problems if not problem.warning]
    if errors:
        first = f"{configuration.where(errors[0])}{errors[0].text}"
        yield Said("problem", f"{case.path}: {first}", "`deliver check` shows all errors; until then all mail waits")
    elif problems:
        yield Said("warning", f"{case.path}: {counted(len(problems), 'warning')}", "`deliver check` says more")
    try:
        state = os.stat(case.path)
        above = Path(os.path.abspath(case.path)).parents
        closed_to_others = next((str(one) for one in above if not one.stat().st_mode & 0o001), "")
    except OSError:
        return
    if state.st_mode & 0o022:
        yield Said("problem", f"{case.path} can be written by others", f"chmod go-w {case.path}")
    elif not state.st_mode & 0o004:
        yield Said("warning", f"{case.path} cannot be read by everybody", "whoever mail is delivered as must read it")
    elif closed_to_others:
        advice = f"whoever mail is delivered as must read what is in it: chmod o+x {closed_to_others}"
        yield Said("warning", f"{closed_to_others} cannot be entered by everybody", advice)
    elif not problems:
        yield Said("ok", case.path)


def the_service(case: Case) -> Iterator[Said]:
    """Does it answer at each of its doors?"""
    doors = [("unix:" + (os.environ.get("DELIVER_SOCKET") or case.settings.service.socket), "")]
    doors += [(address, "220 ") for address in case.settings.service.lmtp]
    if not doors[0][0].removeprefix("unix:") or not os.path.exists(doors[0][0].removeprefix("unix:")):
        yield Said("ok", "not running: each delivery does its own work")
        return
    if not os.environ.get("DELIVER_SOCKET"):
        yield from _asked_elsewhere(case)
    for address, greeting in doors:
        begun = time.monotonic()
        try:
            said = _knock(address, len(greeting))
        except PermissionError:  # the command's door is 0600: it is there for the deliveries of one user
            words = f"{address} is not open to uid {os.geteuid()}, whose deliveries do their own work"
            yield Said("ok", words, "to see whether it answers, ask as the service's user, or as root")
            continue
        except (OSError, ValueError) as error:
            yield Said("problem", f"{address}: {error}", "start `deliver serve`, or remove what is left of its socket")
            continue
        if said != greeting.encode():
            yield Said("problem", f"{address}: said {said!r}", "is it `deliver serve` that listens there?")
        else:
            yield Said("ok", f"{address} answers in {time.monotonic() - begun:.2f} s")


def _asked_elsewhere(case: Case) -> Iterator[Said]:
    """`make install SOCKET=...` wrote into the command where it asks; the service goes by its configuration."""
    try:
        with open(case.command, encoding="utf-8", errors="replace") as file:
            found = re.search(r"(?m)^socket=(.*)$", file.read())
    except OSError:
        return
    listens = case.settings.service.socket
    if found and found[1] != listens:
        words = f"listens at {listens}, {case.command} asks {f'at {found[1]}' if found[1] else 'no service'}"
        yield Said("problem", words, f"make install SOCKET={listens}")


def _knock(address: str, length: int) -> bytes:
    from deliver.scanners.address import UnixAddress, parse

    where = parse(address)
    if isinstance(where, UnixAddress):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_WAIT)
    else:
        connection = socket.create_connection((where.host, where.port), _WAIT)
    with connection:
        if isinstance(where, UnixAddress):
            connection.connect(where.path)
        return connection.recv(length, socket.MSG_WAITALL) if length else b""


def the_quarantine(case: Case) -> Iterator[Said]:
    """One for the site is asked here; those in mailboxes with the mailboxes."""
    directory = case.settings.quarantine.directory
    if directory.startswith("{maildir}/"):
        return
    try:
        state = os.stat(directory)
    except FileNotFoundError:
        above = os.path.dirname(directory)
        if os.path.isdir(above):
            yield Said("ok", f"{directory} is made on first use, if whoever delivers may write to {above}")
        else:
            yield Said("problem", f"{above} is not there, so {directory} cannot be made", f"mkdir {above}")
        return
    except OSError as error:
        yield Said("problem", f"{directory}: {error.strerror}")
        return
    yield room(directory) or closed(directory, state) or Said("ok", directory)


def room(directory: str) -> Said | None:
    """What is wrong with the file system in which mail is held."""
    free = os.statvfs(directory)
    if free.f_flag & os.ST_RDONLY:
        words = f"{directory}: the file system is read-only, so such mail waits"
        return Said("problem", words, "mount it for writing")
    megabytes, files = free.f_bavail * free.f_frsize // 1_000_000, free.f_favail if free.f_files else LOW_FILES
    if megabytes < LOW_MEGABYTES or files < LOW_FILES:
        words = f"{directory}: room for {megabytes} MB and {files} files is left; once it is full, such mail waits"
        return Said("problem", words, "make room, or run `quarantine expire` from cron")
    return None


def closed(path: str, state: os.stat_result) -> Said | None:
    """What is wrong with a directory in which mail is held."""
    if not stat.S_ISDIR(state.st_mode) or not state.st_mode & 0o200:
        return Said("problem", f"{path} is no directory that its owner can write to", f"chmod 700 {path}")
    if state.st_mode & 0o077:
        return Said("problem", f"{path} is open to others (mode {state.st_mode & 0o777:o})", f"chmod 700 {path}")
    return None


def the_attachments(case: Case) -> Iterator[Said]:
    """What [attachments] looks into archives and documents with, beside Python itself."""
    if case.settings.attachments is None:
        return
    if missing := libarchive.missing():
        yield Said("problem", f"7z, rar, cab, iso and their like cannot be looked into: {missing}", "install it")
    else:
        yield Said("ok", "libarchive is there")
    if importlib.util.find_spec("oletools") is None:
        words = "oletools is not installed: macros are told by what the files say of themselves"
        advice = f"to find more of them: {sys.prefix}/bin/python -m pip install 'oletools>=0.60.2,<1'"
        yield Said("ok", words, advice)


def the_log(case: Case) -> Iterator[Said]:
    """A file must be there: whoever makes it first shuts out the others."""
    path = case.settings.log.to
    if path in ("syslog", "stderr"):
        return
    try:
        state = os.stat(path)
    except OSError as error:
        words = f"{path} is not there" if isinstance(error, FileNotFoundError) else f"{path}: {error.strerror}"
        yield Said("warning", words, "make it with the owner that mail is delivered as, mode 640")
        return
    if state.st_uid == 0 and not state.st_mode & 0o022:
        words = f"{path} can be written by root alone: mail that is delivered as another user is logged in syslog"
        yield Said("warning", words, f"chown it to whoever mail is delivered as, such as: chown vpopmail {path}")


def the_mail_server(case: Case) -> Iterator[Said]:
    """How it calls us, where its files say so."""
    default = os.path.join(case.root, "var/qmail/control/defaultdelivery")
    with contextlib.suppress(OSError), open(default, "rb") as file:
        lines = qmailfile.parse(file.read(qmailfile.LARGEST))
        yield from delivering_lines(default, lines, f"write |{case.command} in its place")
    with contextlib.suppress(OSError):
        yield from _postfix(case)
    queue, *others = (f"{forward.QMAIL}/qmail-queue", *(f"{place}/sendmail" for place in forward.SENDMAIL))
    if not any(os.access(os.path.join(case.root, path.lstrip("/")), os.X_OK) for path in (queue, *others)):
        words = f"there is no {queue}, {' or '.join(others)}: mail that a rule forwards, and answers, wait"
        yield Said("warning", words, "install the mail server's, unless the PATH that it gives us has one")


def _postfix(case: Case) -> Iterator[Said]:
    with open(os.path.join(case.root, "etc/postfix/main.cf"), encoding="utf-8", errors="replace") as file:
        main: dict[str, str] = dict(re.findall(r"(?m)^([a-z0-9_-]+)[ \t]*=[ \t]*(.*?)[ \t]*$", _logical(file.read())))
    limit = main.get("command_time_limit", "1000s")
    if command := main.get("mailbox_command", ""):
        called = os.path.basename(command.split()[0])
        if called == "deliver":
            yield _time_left(case, "mailbox_command", "command_time_limit", limit) or Said(
                "ok", "Postfix: mailbox_command"
            )
        elif called in ("maildrop", "procmail"):
            yield Said(
                "warning", f"Postfix calls {called}: mailbox_command", f"main.cf: mailbox_command = {case.command}"
            )
    with open(os.path.join(case.root, "etc/postfix/master.cf"), encoding="utf-8", errors="replace") as file:
        services = _logical(file.read()).splitlines()
    for line in services:
        words = line.split()
        found = re.search(r"\bargv=(\S*/)?deliver(\s|$)", line)
        if not words or not found or "dovecot" in (found[1] or ""):
            continue
        name = words[0]
        own = f"{name}_time_limit"
        if main.get(f"{name}_destination_recipient_limit") != "1":
            advice = f"main.cf: {name}_destination_recipient_limit = 1"
            yield Said("problem", f"Postfix may call {name} once for many recipients, and that is refused", advice)
        elif "{recipient}" not in line or "{sender}" not in line:
            advice = "--sender ${sender} --recipient ${recipient}"
            yield Said("problem", f"master.cf: {name} does not say sender and recipient", advice)
        else:
            yield _time_left(case, name, own, main.get(own, limit)) or Said("ok", f"Postfix: {name}")


def _logical(text: str) -> str:
    """One line each (postconf(5)): comments go, and a line that begins with a blank continues the one before it."""
    return re.sub(r"\n[ \t]+", " ", re.sub(r"(?m)^[ \t]*#.*\n?", "", text))


def _time_left(case: Case, name: str, key: str, limit: str) -> Said | None:
    """Postfix kills a command that takes longer, and gives the message back: we must have answered before."""
    found = re.fullmatch(r"([0-9]+)([smhdw]?)", limit)
    seconds = int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]] if found else 0
    if not found or seconds > case.settings.deadline:
        return None
    words = f"Postfix kills {name} after {limit} and returns its message; our deadline is {case.settings.deadline:g} s"
    return Said("problem", words, f"main.cf: {key} = {case.settings.deadline * 2:.0f}s, or a shorter `deadline`")


def delivering_lines(path: str, lines: tuple[qmailfile.Line, ...], instead: str) -> Iterator[Said]:
    """What is wrong with a .qmail file's lines; ``instead`` says what else to do where adopt leaves maildrop's."""
    state = tickbox.state(lines, virtual=True)
    if state.word == "twice":
        adopts = not instead and any(line.kind is Kind.MAILDROP for line in lines)
        delete = "delete all but one of: " + "; ".join(_delivering(lines))
        yield Said("problem", f"{path}: {state.words}", "`deliver adopt`" if adopts else delete)
    elif state.word == "maildrop":
        yield Said("warning", f"{path}: calls maildrop", instead or "`deliver adopt`")
    for line in lines:
        if line.kind is Kind.OURS and re.match(rb"\|\s*(\S*/)?preline\s", line.raw):
            yield Said("warning", f"{path}: calls us through preline", f"not needed, slower: {line.text.strip()}")
        if len(line.raw) >= 500:
            yield Said("warning", f"{path}: a line of {len(line.raw)} bytes", "vdelivermail cuts lines at 500 bytes")


def _delivering(lines: tuple[qmailfile.Line, ...]) -> list[str]:
    return [line.text.strip() for line in lines if line.kind in qmailfile.DELIVERING]


Check = tuple[str, Callable[[Case], Iterator[Said]]]

CHECKS: tuple[Check, ...] = (
    ("configuration", the_configuration),
    ("service", the_service),
    ("quarantine", the_quarantine),
    ("attachments", the_attachments),
    ("log", the_log),
    ("mail server", the_mail_server),
)


def examine(case: Case, checks: Iterable[Check]) -> Iterator[tuple[str, Said]]:
    """Run each check; one that breaks is a problem of its own."""
    for name, check in checks:
        try:
            for said in check(case):
                yield name, said
        except Exception as error:
            yield name, Said("problem", f"the check itself failed: {type(error).__name__}: {error}")
