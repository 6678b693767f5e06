"""Is each part there, how fast, and what to do about what is not. Nothing is changed and nothing is delivered.

Each check is one function and one line of CHECKS. What every mailbox is asked stands in doctor_mailboxes.
"""

import asyncio
import contextlib
import datetime as dt
import hashlib
import importlib.util
import os
import re
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from deliver import config as configuration
from deliver import forward, libarchive, qmailfile, tickbox, wiring
from deliver.errors import DeliverError
from deliver.qmailfile import Kind
from deliver.scan import Scanner
from deliver.scanners.clamd import Clamd
from deliver.settings import Config, SpamScanner, one_by_one
from deliver.units import counted
from deliver.values import Envelope, Finding, Verdict

SLOW = 3.0
"""Seconds for a message of 500 bytes. spamd takes some 0.2 s without network tests, and a second or so with them."""

OLD_SIGNATURES = 3.0
"""Days; freshclam(1) looks for new ones several times a day, and they come daily."""

OLD_RULES = 60.0
"""Days; sa-update(1) brings new rules every few weeks at least."""

LOW_MEGABYTES, LOW_FILES = 100, 1000
"""Room in the quarantine's file system below which somebody should know."""

_WAIT = 5.0  # seconds for a door to open

_SLOW_ADVICE = (
    "mostly network tests that wait for answers which never come: a slow or missing resolver (run one on this host; "
    "`time host -t txt multi.surbl.org`), or blocked ports of DCC (UDP 6277), Razor (TCP 2703) and Pyzor (UDP 24441). "
    "Open them or switch these plug-ins off; `spamassassin -D -t < message` shows which test waits"
)


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


class InMemory(NamedTuple):
    """A message as scanners see it (values.Content)."""

    text: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.text)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces."""
        for start in range(0, len(self.text), 65536):
            yield self.text[start : start + 65536]

    def digest(self) -> str:
        """What tells it from others."""
        return hashlib.sha256(self.text).hexdigest()

    def fields(self, _name: str) -> list[bytes]:
        """No scanner asks for these."""
        return []


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
    except OSError:
        return
    if state.st_mode & 0o022:
        yield Said("problem", f"{case.path} can be written by others", f"chmod go-w {case.path}")
    elif not state.st_mode & 0o004:
        yield Said("warning", f"{case.path} cannot be read by everybody", "whoever mail is delivered as must read it")
    elif not problems:
        yield Said("ok", case.path)


class Member(NamedTuple):
    """One scanner, or one of a pool: ``where`` stands before what is said of it, "" for the only one."""

    where: str
    address: str
    scanner: Scanner


def _members(case: Case, name: str) -> list[Member]:
    """The scanner of this name; of a pool each member by itself, since deliveries pass over a dead one in silence."""
    found = [(address, alone) for one, address, alone in one_by_one(case.settings) if one == name]
    scanners = [next(one for one in wiring.scanners(alone) if one.name == name) for _, alone in found]
    return [
        Member(f"{address}: " if len(found) > 1 else "", address, scanner)
        for (address, _), scanner in zip(found, scanners, strict=True)
    ]


def _ask(scanner: Scanner, text: bytes) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="deliver-doctor-") as maildir:
        os.mkdir(os.path.join(maildir, "tmp"))  # where a program finds its file
        begun = time.monotonic()
        envelope = Envelope("sender@example.org", "you@example.org", maildir)
        verdict = asyncio.run(scanner.scan(InMemory(text), envelope))
        return verdict._replace(seconds=time.monotonic() - begun)


def the_clamd(case: Case) -> Iterator[Said]:
    """There, and with which signatures."""
    members = _members(case, "clamd")
    if not members:
        yield Said("ok", "not configured: nothing is scanned for viruses by it")
    for where, address, scanner in members:
        if isinstance(scanner, Clamd):
            yield _signatures(case, where, address, scanner)


def _signatures(case: Case, where: str, address: str, scanner: Clamd) -> Said:
    try:
        version = asyncio.run(scanner.version())
    except Exception as error:
        advice = f"is clamd running, does it listen at {address}, and may everybody connect (LocalSocketMode 666)?"
        return Said("problem", f"{where}{error}", advice)
    found = re.search(r"/(\d+)/\w{3} (\w{3}) +(\d+) ([\d:]{8}) (\d{4})", version)
    if not found:
        return Said("warning", f"{where}{version}: does not say how old its signatures are", "has freshclam ever run?")
    made = dt.datetime.strptime(f"{found[2]} {found[3]} {found[4]} {found[5]} +0000", "%b %d %H:%M:%S %Y %z")
    days = (case.now - made.timestamp()) / 86400
    words = f"{where}{version.partition('/')[0]}, signatures {found[1]}, {max(days, 0):.0f} days old"
    return Said("warning", words, "is freshclam running? see its log") if days > OLD_SIGNATURES else Said("ok", words)


def eicar(case: Case) -> Iterator[Said]:
    """The test virus must be found; and clamd must take what we send."""
    for where, _, scanner in _members(case, "clamd"):
        said = _virus_seen(where, _ask(scanner, case.samples["virus"]))
        yield said
        if said.level == "ok" and _ask(scanner, b"\n" * scanner.max_size).finding is Finding.SKIPPED:
            words = f"{where}clamd takes less than [clamd] max-size, {scanner.max_size} bytes"
            yield Said("warning", words, "raise its StreamMaxLength")


def _virus_seen(where: str, verdict: Verdict) -> Said:
    if verdict.finding is Finding.VIRUS:
        return Said("ok", f"{where}EICAR seen as {', '.join(verdict.names)} in {verdict.seconds:.2f} s")
    words = f"{where}EICAR was not seen: {verdict.finding.value} {verdict.reason}".rstrip()
    return Said("problem", words, verdict.detail or "are its signatures loaded? see its log")


def the_spamd(case: Case) -> Iterator[Said]:
    """There, which version, and how fast."""
    members = _members(case, "spamd")
    if not members:
        yield Said("ok", "not configured: nothing is scanned for spam by it")
    for where, address, scanner in members:
        verdict = _ask(scanner, case.samples["ham"])
        if verdict.finding is Finding.FAILED:
            advice = f"{verdict.detail}; is spamd running, and does it listen at {address}?"
            yield Said("problem", f"{where}{verdict.reason}", advice)
            continue
        found = re.search(rb"X-Spam-Checker-Version: (SpamAssassin \S+)", verdict.headers)
        version = found[1].decode("ascii", "replace") if found else "spamd"
        words = f"{where}{version}, a short message in {verdict.seconds:.2f} s"
        yield Said("warning", f"{words}: slow", _SLOW_ADVICE) if verdict.seconds > SLOW else Said("ok", words)
        if verdict.finding is Finding.SPAM:
            words = f"{where}the sample of good mail is spam to it"
            yield Said("warning", words, "see its rules: `deliver sample ham | spamc -R`")
    if members:
        yield from _age_of_rules(case)


def _age_of_rules(case: Case) -> Iterator[Said]:
    """sa-update(1) makes one directory for each version; none where spamd runs on another host."""
    base = os.path.join(case.root, "var/lib/spamassassin")
    with contextlib.suppress(OSError):
        times = [os.stat(entry).st_mtime for entry in os.scandir(base) if re.match(r"\d+\.\d+$", entry.name)]
        days = (case.now - max(times)) / 86400 if times else 0.0
        if days > OLD_RULES:
            yield Said("warning", f"SpamAssassin's rules are {days:.0f} days old", "run sa-update from cron")


def gtube(case: Case) -> Iterator[Said]:
    """The test spam must be seen."""
    for where, _, scanner in _members(case, "spamd"):
        verdict = _ask(scanner, case.samples["spam"])
        if verdict.finding is not Finding.FAILED:  # the check before has said that
            yield _spam_seen(where, verdict)


def _spam_seen(where: str, verdict: Verdict) -> Said:
    if verdict.finding is Finding.SPAM:
        return Said("ok", f"{where}GTUBE seen, {verdict.score} points in {verdict.seconds:.2f} s")
    if verdict.score is not None:
        words = f"{where}GTUBE was not seen: {verdict.score} points"
        return Said("problem", words, "it runs without its rules: sa-update for spamd; for rspamd `gtube_patterns`")
    return Said(
        "problem", f"{where}GTUBE was not seen: {verdict.finding.value} {verdict.reason}".rstrip(), verdict.detail
    )


def the_others(case: Case) -> Iterator[Said]:
    """Every [[scanner]]: each must find what it is there for."""
    for one in case.settings.scanners:
        kind, seen = ("spam", _spam_seen) if isinstance(one, SpamScanner) else ("virus", _virus_seen)
        for where, _, scanner in _members(case, one.name):
            yield seen(f"{one.name}: {where}", _ask(scanner, case.samples[kind]))


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


CHECKS: tuple[tuple[str, Callable[[Case], Iterator[Said]]], ...] = (
    ("configuration", the_configuration),
    ("clamd", the_clamd),
    ("EICAR", eicar),
    ("spamd", the_spamd),
    ("GTUBE", gtube),
    ("scanner", the_others),
    ("service", the_service),
    ("quarantine", the_quarantine),
    ("attachments", the_attachments),
    ("log", the_log),
    ("mail server", the_mail_server),
)


def examine(case: Case) -> Iterator[tuple[str, Said]]:
    """Run each check about the site; one that breaks is a problem of its own."""
    for name, check in CHECKS:
        try:
            for said in check(case):
                yield name, said
        except Exception as error:
            yield name, Said("problem", f"the check itself failed: {type(error).__name__}: {error}")
