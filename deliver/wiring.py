"""From a configuration to the parts that carry it out.

The only room that knows every adapter; each is imported when the configuration asks for it, since start-up is most of
what a delivery costs.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from deliver import log
from deliver.config import Config, Personal, personal
from deliver.errors import Deferred
from deliver.message import Forgeries
from deliver.pipeline import Mailbox, Site
from deliver.scan import Scanner
from deliver.units import Limit, parse_limit
from deliver.values import Envelope
from quarantine.store import Store

COMMAND_TIMEOUT = 20.0
"""Seconds for [quota] command; vuserinfo answers in milliseconds, a database that is down does not."""


def site(config: Config, *, qmail: bool, path: str, blocking: Callable[..., Awaitable[Any]]) -> Site:
    """What deliveries under ``config`` work with.

    ``qmail`` and ``path`` say who called us and with which PATH; ``blocking`` is how disk work is run.
    """
    write = log.to(config.log.to)

    def injector() -> Any:
        from deliver.forward import Forwarder

        rewrite = () if config.forward.sender == "keep" else config.forward.sender
        return Forwarder(qmail=qmail, path=path, rewrite=rewrite)

    return Site(
        config=config,
        scanners=scanners(config),
        personal=lambda envelope: _personal(config, envelope, write),
        mailbox=lambda envelope: _mailbox(config, envelope, write),
        quarantine=lambda envelope: quarantine(config, envelope),
        injector=injector,
        blocking=blocking,
        log=write,
        now=time.time,
    )


def scanners(config: Config) -> tuple[Scanner, ...]:
    """The scanners that the configuration names."""
    found: list[Scanner] = []
    if config.clamd is not None:
        from deliver.scanners.clamd import Clamd

        found.append(Clamd(config.clamd.address, config.clamd.max_size, config.clamd.timeout))
    if config.spamd is not None:
        from deliver.scanners.spamd import Spamd

        found.append(Spamd(config.spamd.address, config.spamd.max_size, config.spamd.timeout, config.spamd.user))
    elif config.spam.trust_header:
        from deliver.scanners.trusted import TrustedHeader

        found.append(TrustedHeader(config.spam.trust_header))
    return tuple(found)


def forgeries(config: Config) -> Forgeries:
    """The header fields that only we may write."""
    names = {b"x-filter-error"}
    if config.clamd is not None:
        names.add(b"x-virus-status")
    prefixes = (b"x-spam-",) if config.spamd is not None else ()
    name = config.authentication.name.replace("{hostname}", os.uname().nodename)
    return Forgeries(frozenset(names), prefixes, name.encode("ascii", "replace"))


def quarantine(config: Config, envelope: Envelope) -> Store:
    """Where this recipient's mail is held."""
    from quarantine.files import Files

    directory = config.quarantine.directory
    if directory.startswith("{maildir}/"):
        return Files(envelope.maildir, directory.removeprefix("{maildir}/"))
    base, _, name = directory.rstrip("/").rpartition("/")
    return Files(base or "/", name)


def spool(maildir: str) -> int:
    """An unnamed file in the Maildir's tmp for a message that a pipe gives; raises Deferred."""
    from deliver import maildir as maildirs

    return maildirs.spool(maildir)


def full(maildir: str, sizes: list[tuple[str, int]]) -> str:
    """What Mailbox.over_quota would say, for a Maildir that is only looked at; raises OSError."""
    from deliver import quota

    fd = os.open(maildir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        usage = quota.assess(fd, None)
        counted = [size for folder, size in sizes if quota.counts(folder)]
        if usage is None or not counted or not usage.over(sum(counted), len(counted)):
            return ""
        return usage.words()
    finally:
        os.close(fd)


def _personal(config: Config, envelope: Envelope, write: log.Log) -> Personal:
    if not config.user_rules:
        return Personal()
    own = personal(os.path.join(os.path.dirname(envelope.maildir), config.user_rules), config, os.geteuid())
    if own.error:
        words = f"{os.path.basename(config.user_rules)}: {own.error}; the site's rules alone were applied"
        write(level="warning", recipient=envelope.recipient, detail=words)
        return own._replace(error=words)
    return own


def _mailbox(config: Config, envelope: Envelope, write: log.Log) -> Mailbox:
    from deliver import mailbox

    default: Limit | None = parse_limit(config.quota.limit) if config.quota.limit else None
    if config.quota.command and not os.path.lexists(os.path.join(envelope.maildir, "maildirsize")):
        try:
            default = parse_limit(_ask(config.quota.command, envelope))
        except (OSError, ValueError, Deferred) as error:
            write(level="warning", recipient=envelope.recipient, detail=f"[quota] command: {error}; no quota is kept")
    return mailbox.Mailbox(envelope.maildir, default, config.quota.warn_at, config.quota.warning)


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
