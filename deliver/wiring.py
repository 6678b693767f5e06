"""From a configuration to the parts that carry it out.

The only room that knows every adapter; each is imported when the configuration asks for it, since start-up is most of
what a delivery costs.
"""

import contextlib
import functools
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deliver import log
from deliver.actions import Injector
from deliver.config import personal
from deliver.errors import Deferred
from deliver.layers import Reader, layers, together
from deliver.message import Forgeries
from deliver.pipeline import Mailbox, Site
from deliver.rules.model import Outside, Signature
from deliver.scan import Scanner
from deliver.settings import (
    Attachments,
    Command,
    Config,
    Icap,
    Personal,
    Rspamd,
    Spam,
    SpamScanner,
    VirusScanner,
    settings_of,
)
from deliver.units import Limit, parse_limit
from deliver.values import INBOX, Answer, Content, Envelope, Finding
from quarantine.store import Archive, Store

if TYPE_CHECKING:
    from deliver.lists import Lists
    from deliver.metrics import Metrics

PROGRAM_TIMEOUT = 120.0
"""Seconds for a program that a rule gives a message to; then it is killed and the mail server tries again."""

COMMAND_TIMEOUT = 20.0
"""Seconds for [quota] command; vuserinfo answers in milliseconds, a database that is down does not."""


def site(config: Config, *, blocking: Callable[..., Awaitable[Any]], read: Reader = personal) -> Site:
    """What deliveries under ``config`` work with; ``for_caller`` completes it.

    ``blocking`` is how disk work is run; ``read`` reads a user's own file.
    """
    write = log.to(config.log.to)
    return Site(
        config=config,
        scanners=scanners(config),
        personal=lambda envelope: _personal(config, envelope, write, read),
        mailbox=lambda envelope: _mailbox(config, envelope, write),
        quarantine=lambda envelope: quarantine(config, envelope),
        injector=lambda: _injector(config, {}),
        program=lambda name, envelope, chunks: _program(config, name, envelope, chunks),
        blocking=blocking,
        log=write,
        now=time.time,
        outside=outside(config),
        remember=_remember,
    )


def for_caller(one: Site, environment: Mapping[str, str]) -> Site:
    """The site for a message from the MTA that set this environment."""
    return one._replace(injector=lambda: _injector(one.config, environment))


def resident(
    config: Config, blocking: Callable[..., Awaitable[Any]], metrics: "Metrics"
) -> tuple[Site, list[Callable[[], Coroutine[Any, Any, None]]]]:
    """What a service works with: scans are shared and counted, users' files read once; and what has to be watched."""
    from deliver.scan_once import ScanOnce, Version
    from deliver.scanners.clamd import Clamd

    if config.spamd is not None:
        import deliver.scanners.spamd_connection  # noqa: F401  # which the first message would have to wait for

    one = site(config, blocking=blocking, read=PersonalFiles().read)
    watches = []
    shared: list[Scanner] = []
    for scanner in one.scanners:
        settings = settings_of(config, scanner.name)
        if settings is None and scanner.name != "attachments":  # a verdict read from a header line costs nothing
            shared.append(scanner)
            continue
        version = Version(getattr(settings, "address", ()), scanner.version if isinstance(scanner, Clamd) else None)
        per_user = isinstance(settings, SpamScanner) and "{recipient}" in settings.user
        shared.append(ScanOnce(metrics.measured(scanner), per_user=per_user, identity=version))
        watches.append(version.watch)
    return one._replace(scanners=tuple(shared)), watches


class PersonalFiles:
    """Users' own files, kept as long as they are the same files; a file that has just changed is read again."""

    KEPT = 10_000
    FRESH = 2.0
    """Seconds in which a file may change once more without its times telling (the kernel's clock ticks in ms)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Spam, Attachments | None], tuple[tuple[int, ...], Personal]] = {}

    def read(self, path: str, config: Config, uid: int, domain: bool = False) -> Personal:
        """See config.personal."""
        try:
            state = os.stat(path, follow_symlinks=False)
        except OSError:
            return personal(path, config, uid, domain)
        identity = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_mode)
        name = (path, config.spam, config.attachments)  # a domain's settings hold where the owner's file says nothing
        kept = self._kept.get(name)
        if kept is not None and kept[0] == identity:
            return kept[1]
        own = personal(path, config, uid, domain)
        if time.time() - state.st_ctime > self.FRESH:
            if len(self._kept) >= self.KEPT:
                self._kept.clear()
            self._kept[name] = (identity, own)
        return own


def _injector(config: Config, environment: Mapping[str, str]) -> Injector:
    """Under qmail (DTLINE is set) NEWSENDER is the sender of what is sent on (dot-qmail(5), .qmail-ext-owner)."""
    from deliver.forward import Forwarder

    rewrite = () if config.forward.sender == "keep" else config.forward.sender
    qmail = "DTLINE" in environment
    sender = environment.get("NEWSENDER") if qmail and not rewrite else None
    return Forwarder(qmail=qmail, path=environment.get("PATH", ""), rewrite=rewrite, sender=sender)


def _program(config: Config, name: str, envelope: Envelope, chunks: Iterable[bytes]) -> int:
    from deliver import programs

    return programs.run(config.programs[name], chunks, PROGRAM_TIMEOUT, programs.environment(envelope))


def outside(config: Config) -> Callable[[Envelope], Outside]:
    """What conditions may ask beyond the message, for each recipient; lists are kept from one delivery to the next."""

    @functools.cache
    def lists() -> "Lists":
        from deliver.lists import Lists

        return Lists(config.lists)

    trusted = frozenset(name.lower() for name in config.authentication.trusted)

    def signatures(content: Content) -> tuple[Signature, ...]:
        from deliver import signatures as dkim

        return dkim.verify(content, config.dkim.timeout, config.dkim.max_size)

    def last_seen(maildir: str, message_id: str) -> float | None:
        from deliver.seen import Seen

        return Seen(maildir).last(message_id)

    def for_recipient(envelope: Envelope) -> Outside:
        beside = os.path.dirname(os.path.normpath(envelope.maildir))
        return Outside(
            addresses=lambda name: lists().entries(name, beside, os.geteuid()),
            signatures=signatures,
            last_seen=lambda message_id: last_seen(envelope.maildir, message_id),
            trusted=trusted,
        )

    return for_recipient


def _remember(envelope: Envelope, message_id: str, now: float) -> None:
    from deliver.seen import Seen

    Seen(envelope.maildir).remember(message_id, now)


def scanners(config: Config) -> tuple[Scanner, ...]:
    """The scanners that the configuration names."""
    found: list[Scanner] = []
    if config.clamd is not None:
        from deliver.scanners.clamd import Clamd

        contents = _contents if config.attachments is not None else None
        found.append(Clamd(config.clamd.address, config.clamd.max_size, config.clamd.timeout, contents))
    if config.spamd is not None:
        from deliver.scanners.spamd import Spamd

        found.append(Spamd(config.spamd.address, config.spamd.max_size, config.spamd.timeout, config.spamd.user))
    found += map(_scanner, config.scanners)
    found += local_scanners(config)
    if config.spam.trust_header and not any(isinstance(settings_of(config, one.name), SpamScanner) for one in found):
        from deliver.scanners.trusted import TrustedHeader

        found.append(TrustedHeader(config.spam.trust_header))
    return tuple(found)


def _contents(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    from deliver.content.attachments import contents
    from deliver.content.bounds import Bounds

    bounds = Bounds(whole=True)
    for found in contents(chunks, bounds):
        begun = time.monotonic()
        yield found
        bounds.waited(time.monotonic() - begun)  # clamd has a timeout of its own


def local_scanners(config: Config) -> tuple[Scanner, ...]:
    """Those that ask nobody: they can be had without a network, and say the same each time."""
    if config.attachments is None:
        return ()
    from deliver.scanners.attachments import Attached

    settings = config.attachments
    return (Attached(settings.forbidden, settings.tricks, settings.types),)


def _scanner(one: Command | Icap | Rspamd) -> Scanner:
    """A [[scanner]] of the configuration."""
    if isinstance(one, Icap):
        from deliver.scanners import icap

        where = icap.Service(one.service, one.method, one.preview)
        return icap.Icap(one.name, one.address, one.max_size, one.timeout, where)
    if isinstance(one, Rspamd):
        from deliver.scanners import rspamd

        keys = {"user": one.user, "soft_reject": one.soft_reject}
        return rspamd.Rspamd(one.name, one.address, one.max_size, one.timeout, **keys)
    from deliver.scanners import command

    known = command.PRESETS.get(one.preset, command.Preset((), {}, ""))
    codes = {**known.codes, **{int(code): Finding(said) for code, said in one.codes.items()}}
    argv, pattern = one.command or known.command, one.pattern or known.pattern
    return command.Command(one.name, argv, codes, pattern, one.max_size, one.timeout)


def forgeries(config: Config) -> Forgeries:
    """The header fields that only we may write."""
    configured = (config.clamd, config.spamd, *config.scanners)
    names = {b"x-filter-error"}
    if any(isinstance(one, VirusScanner) for one in configured):
        names.add(b"x-virus-status")
    if config.attachments is not None:
        names.add(b"x-attachment-status")
    prefixes = (b"x-spam-",) if any(isinstance(one, SpamScanner) for one in configured) else ()
    return Forgeries(frozenset(names), prefixes, config.authentication.ours().encode("ascii", "replace"))


def quarantine(config: Config, envelope: Envelope) -> Store:
    """Where this recipient's mail is held."""
    return archive(config.quarantine.directory, envelope.maildir)


def archive(directory: str, maildir: str) -> Archive:
    """The quarantine in ``directory``, which may begin with "{maildir}/"."""
    from quarantine.files import Files

    if directory.startswith("{maildir}/"):
        return Files(maildir, directory.removeprefix("{maildir}/"))
    base, _, name = os.path.abspath(directory).rpartition("/")
    return Files(os.path.realpath(base or "/"), name)  # the administrator's own links are to be followed


def store(maildir: str, folder: str, content: Callable[[], Iterable[bytes]]) -> None:
    """Put one message into a Maildir, unfiltered and counted; into its inbox where the folder cannot be used.

    Over quota it is stored all the same: somebody has asked for it. Raises Deferred.
    """
    from deliver.mailbox import Mailbox
    from deliver.maildir import FolderUnusable

    mailbox = Mailbox(maildir, None, 100, "")
    try:
        try:
            prepared = mailbox.prepare(folder, content())
        except FolderUnusable:
            prepared = mailbox.prepare(INBOX, content())
        try:
            prepared.commit()
        finally:
            prepared.abort()
        mailbox.settle()
    finally:
        mailbox.close()


def mailbox_of(config: Config, address: str) -> str:
    """The Maildir of one of our own addresses, if [users] knows it and we have its owner's rights now; else ""."""
    from deliver.users import CannotTell, look_up

    user, _, domain = address.rpartition("@")
    if config.users is None or "/" in address or user.startswith(".") or domain.startswith("."):
        return ""
    try:
        found = look_up(config.users, address)
        return found.maildir if found and os.stat(found.maildir).st_uid == os.geteuid() else ""
    except (CannotTell, OSError):
        return ""


def send(sender: str, address: str, content: Iterable[bytes]) -> None:
    """Hand one message to the MTA; raises Deferred."""
    _injector(Config(), os.environ).send(sender, address, content)


MOST_FAILURES = 3
"""Lessons in a row that spamd did not take; then it is down, and nobody waits for it a thousand times more."""


class NoLessons(Deferred):
    """spamd takes none, whatever it is told; the detail says why, and what to do."""


def teacher(config: Config) -> Callable[[Content, str, bool], bool]:
    """What tells spamd of a message, for a recipient, that it is spam (True) or not; whether that was new to it.

    Raises NoLessons here where there is no spamd, and later; Deferred where it did not answer.
    """
    import asyncio

    from deliver.scanners.pool import NoAnswer
    from deliver.scanners.spamd import Spamd

    if config.spamd is None:
        raise NoLessons("the configuration has no [spamd] table, so there is nobody to be told")
    spamd = Spamd(config.spamd.address, config.spamd.max_size, config.spamd.timeout, config.spamd.user)
    failures = 0

    def teach(content: Content, recipient: str, spam: bool) -> bool:
        nonlocal failures
        try:
            new = asyncio.run(spamd.tell(content, recipient, spam=spam))
        except NoAnswer as error:
            failures += 1
            if "TELL commands are not enabled" in error.detail:
                raise NoLessons("spamd takes no lessons: start it with --allow-tell") from error
            kind = NoLessons if failures >= MOST_FAILURES else Deferred
            raise kind(f"{error.reason} ({error.detail})") from error
        failures = 0
        return new

    return teach


def spool(maildir: str) -> int:
    """An unnamed file in the Maildir's tmp for a message that a pipe gives; raises Deferred."""
    from deliver import maildir as maildirs

    return maildirs.spool(maildir)


def full(maildir: str, sizes: list[tuple[str, int]], limit: str) -> str:
    """What Mailbox.over_quota would say, for a Maildir that is only looked at; raises OSError.

    ``limit`` is [quota] limit. [quota] command is not asked.
    """
    from deliver import quota

    with _looked_at(maildir) as fd:
        usage = quota.assess(fd, parse_limit(limit) if limit else None)
        counted = [size for folder, size in sizes if quota.counts(folder)]
        if usage is None or not counted or not usage.over(sum(counted), len(counted)):
            return ""
        return usage.words()


def keywords(maildir: str, folder: str) -> dict[str, str]:
    """What Mailbox.keywords would say, for a Maildir that is only looked at; raises OSError."""
    from deliver import keywords as known

    with _looked_at(maildir) as fd:
        return known.letters(fd, "" if folder == INBOX else folder)


def answered(maildir: str, answer: Answer, now: float) -> str:
    """What Mailbox.answered would say, for a Maildir that is only looked at; raises OSError."""
    from deliver import answered as replies

    with _looked_at(maildir) as fd:
        return replies.why_not(fd, answer.key, answer.every, now)


def may_grow(maildir: str) -> bool:
    """What Mailbox.may_grow would say, for a Maildir that is only looked at; raises OSError."""
    from deliver import mailbox

    with _looked_at(maildir) as fd:
        return mailbox.may_grow(fd)


@contextlib.contextmanager
def _looked_at(maildir: str) -> Iterator[int]:
    fd = os.open(maildir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _personal(config: Config, envelope: Envelope, write: log.Log, read: Reader) -> Personal:
    own = together(config, layers(config, envelope.recipient, envelope.maildir, read, os.geteuid()))
    if own.error:
        write(level="warning", recipient=envelope.recipient, detail=own.error)
    return own


def _mailbox(config: Config, envelope: Envelope, write: log.Log) -> Mailbox:
    from deliver import mailbox

    default: Limit | None = parse_limit(config.quota.limit) if config.quota.limit else None
    if config.quota.command and not os.path.lexists(os.path.join(envelope.maildir, "maildirsize")):
        try:
            default = parse_limit(_as_vpopmail_means(_ask(config.quota.command, envelope)))
        except (OSError, ValueError, Deferred) as error:
            write(level="warning", recipient=envelope.recipient, detail=f"[quota] command: {error}; no quota is kept")
    return mailbox.Mailbox(envelope.maildir, default, config.quota.warn_at, config.quota.warning)


def _as_vpopmail_means(limit: str) -> str:
    """vuserinfo may print "10M" or "10MB", with units of 1024 (vpopmail's format_maildirquota)."""

    def in_bytes(found: re.Match[str]) -> str:
        return f"{int(found[1]) * 1024 ** ('KMG'.index(found[2].upper()) + 1)}S"

    return re.sub(r"\b([0-9]{1,12}) *([KMGkmg])[Bb]?(?![A-Za-z])", in_bytes, limit)


def _ask(command: Sequence[str], envelope: Envelope) -> str:
    """The first line that a command prints; raises OSError or Deferred."""
    import subprocess

    argv = [part.replace("{recipient}", envelope.recipient) for part in command]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT, check=True, text=True
        )
    except subprocess.SubprocessError as error:
        raise Deferred(str(error)) from error
    return done.stdout.strip().partition("\n")[0]
