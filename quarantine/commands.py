"""`quarantine`: what is held, why, and letting it go."""

import contextlib
import getpass
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import click

from deliver import config as configuration
from deliver import tree, wiring
from deliver.errors import DeliverError
from deliver.headers import decode
from deliver.message import Message, Source, read_framing
from deliver.settings import Config
from deliver.units import parse_span
from deliver.values import Content
from quarantine import digest as digests
from quarantine.release import NotReleased, delete, release, repair, whole
from quarantine.sqlite import Index, Search
from quarantine.store import KINDS, Archive, Held

QUEUE_LIFETIME = 8 * 86400.0
"""Seconds: qmail keeps mail for 7 days (queuelifetime), Postfix for 5."""

SHOWN = 64 * 1024
"""Bytes of a message that `show` reads."""


class Span(click.ParamType[float]):
    """A span of time, as in the configuration: "30 d"."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The span in seconds."""
        try:
            return value if isinstance(value, float) else parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--directory", default="", help="The quarantine; default: the one the configuration names.")
@click.option("--maildir", default="", help="The mailbox whose own quarantine it is; default: ~/Maildir.")
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.pass_context
def cli(context: click.Context, directory: str, maildir: str, config_path: str) -> None:
    """Look at mail that was held back, let it go, or delete it."""
    path = configuration.find(config_path, os.environ.get("DELIVER_CONFIG", ""))
    settings = Config()
    if config_path or os.path.exists(path):
        try:
            settings = configuration.load(path)
        except DeliverError as error:
            raise click.ClickException(error.detail) from error
    where = directory or settings.quarantine.directory
    own = os.path.abspath(maildir or os.path.expanduser("~/Maildir"))
    context.obj = (settings, wiring.archive(where, own))


@contextmanager
def _index(archive: Archive) -> Iterator[Index]:
    if not os.path.isdir(archive.path):
        raise click.ClickException(f"{archive.path}: there is no quarantine; name it with --directory or --maildir")
    index = Index(archive)
    try:
        index.update()
        yield index
    finally:
        index.close()


def _who() -> str:
    """Who is at work: the person behind sudo(8), if there is one."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


@cli.command("list")
@click.option("--recipient", default="", help="A glob: *@example.org.")
@click.option("--sender", default="", help="A glob.")
@click.option("--subject", default="", help="A glob: *invoice*.")
@click.option("--reason", default="", help="A glob: *virus*.")
@click.option("--older", type=Span(), help='Held for longer than: "7 d".')
@click.option("--newer", type=Span(), help="Held for less than.")
@click.option("--released", is_flag=True, help="Those that were released.")
@click.option(
    "--json", "as_json", is_flag=True, help="One object a line: id recipient sender subject reason time size."
)
@click.pass_obj
def list_(everything: tuple[Any, Archive], /, *, released: bool, as_json: bool, **what: Any) -> None:
    """List what is held, oldest first."""
    with _index(everything[1]) as index:
        for row in index.search(Search(**what), time.time(), "released" if released else "held"):
            if as_json:
                click.echo(json.dumps(row._asdict()))
            else:
                when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.time))
                click.echo(f"{row.id}  {when}  {row.size:>9}  {_safe(row.recipient)}  {_safe(row.sender or '<>')}")
                click.echo(f"    {_safe(row.subject) or '(no subject)'}\n    {_safe(row.reason)}")


@cli.command()
@click.argument("id_", metavar="ID")
@click.option("--raw", is_flag=True, help="The whole message as it would be stored, to a file or a pipe.")
@click.pass_obj
def show(everything: tuple[Any, Archive], id_: str, *, raw: bool) -> None:
    """Show one held message: why it is here, its header, and its text, with nothing that could harm a terminal."""
    archive = everything[1]
    held = _read(archive, id_)
    if raw:
        for chunk in whole(held, archive):
            sys.stdout.buffer.write(chunk)
        return
    click.echo(f"id         {held.id}\nrecipient  {_safe(held.recipient)}\nsender     {_safe(held.sender or '<>')}")
    click.echo(f"held       {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(held.time))}, {held.size} bytes")
    click.echo(f"going to   {_safe(held.folder)} of {_safe(held.maildir)}\nreason     {_safe(held.reason)}")
    for verdict in held.verdicts:
        click.echo(f"scanner    {_safe(json.dumps(verdict))}")
    begin = b""
    for chunk in archive.chunks(held):
        begin += chunk[: SHOWN - len(begin)]
        if len(begin) >= SHOWN:
            break
    header, _, body = begin.replace(b"\r\n", b"\n").partition(b"\n\n")
    click.echo()
    message = Message(Source.of(header + b"\n\n"), read_framing(b""))
    for name in ("From", "To", "Cc", "Subject", "Date", "Message-ID", "Content-Type"):
        for value in message.fields(name):
            click.echo(f"{name}: {_safe(decode(value))}")
    click.echo("\n" + "\n".join(_safe(line) for line in body.decode("utf-8", "replace").splitlines()[:60]))


@cli.command("release")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--to", default="", help="Send it to this address instead.")
@click.option("--learn", type=click.Choice(["ham"]), help="Tell spamd that it is none: ham.")
@click.pass_obj
def release_(
    everything: tuple[Config, Archive], ids: tuple[str, ...], to: str, learn: str | None
) -> None:
    """Deliver held messages to where they were going, without filtering them again."""
    failed = 0
    try:
        teach = wiring.teacher(everything[0]) if learn else None
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
    for id_ in ids:
        try:
            held = release(everything[1], id_, _who(), to)
        except NotReleased as error:
            failed += 1
            click.echo(str(error), err=True)
        else:
            click.echo(f"{id_}: released to {_safe(to or f'{held.folder} of {held.recipient}')}")
            if teach:
                failed += not _learned(everything, held, teach)
    raise SystemExit(1 if failed else 0)


def _learned(
    everything: tuple[Config, Archive], held: Held, teach: Callable[[Content, str, bool], bool]
) -> bool:
    """Whether spamd was told; it is released all the same."""
    settings, archive = everything
    if settings.spamd and held.size > settings.spamd.max_size:
        click.echo(f"{held.id}: not told to spamd: it is larger than [spamd] max-size", err=True)
        return False
    try:
        message = Message(Source.of(b"".join(archive.chunks(held))), read_framing(b""))
        new = teach(message, held.recipient, False)
    except (DeliverError, OSError, KeyError) as error:
        words = error.detail if isinstance(error, DeliverError) else f"{type(error).__name__}: {error}"
        click.echo(f"{held.id}: not told to spamd: {words}", err=True)
        return False
    click.echo(f"{held.id}: {'learned as ham' if new else 'told as ham, which changed nothing'}")
    return True


@cli.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete_(everything: tuple[Any, Archive], ids: tuple[str, ...]) -> None:
    """Delete held messages."""
    archive = everything[1]
    failed = 0
    for id_ in ids:
        try:
            delete(archive, id_, _who())
        except NotReleased as error:
            failed += 1
            click.echo(str(error), err=True)
    with _index(archive) as index:
        archive.collect(index.referenced)
    raise SystemExit(1 if failed else 0)


PATHS = click.argument("paths", nargs=-1, metavar="[PATH...]", type=click.Path(exists=True, file_okay=False))


def _archives(everything: tuple[Config, Archive], paths: tuple[str, ...]) -> Generator[Archive]:
    """The quarantine, or those of all Maildirs at or below the paths, each with its owner's rights."""
    settings, own = everything
    if not paths:
        yield own
        return
    directory = settings.quarantine.directory
    if not directory.startswith("{maildir}/"):
        raise click.UsageError(f"the configuration has one quarantine for the site, {directory}: name no PATH")
    for path in map(os.path.realpath, paths):
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for one in tree.walk(top):
                if one.kind == "failed":
                    click.echo(f"{os.path.join(path, one.path)}: {one.why}", err=True)
                elif one.kind == "maildir":
                    maildir = os.path.join(path, one.path) if one.path else path
                    archive = wiring.archive(directory, maildir)
                    if os.path.isdir(archive.path):
                        with tree.as_owner(os.stat(maildir, follow_symlinks=False)):
                            yield archive
        finally:
            os.close(top)


@cli.command()
@PATHS
@click.option("--keep", type=Span(), help="How long; default: [quarantine] keep and keep-by.")
@click.option("--recipient", default="", help="Only mail for such recipients, a glob: *@example.org.")
@click.option("--reason", default="", help="Only mail held for such reasons, a glob.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.pass_obj
def expire(
    everything: tuple[Config, Archive],
    paths: tuple[str, ...],
    keep: float | None,
    recipient: str,
    reason: str,
    *,
    dry_run: bool,
) -> None:
    """Delete what was held for longer than the configuration says. For cron; silent unless --dry-run.

    With PATHs: in the quarantines of all Maildirs at or below them.
    """
    kept = everything[0].quarantine
    with contextlib.closing(_archives(everything, paths)) as archives:
        for archive in archives:
            with _index(archive) as index:
                for state, kind in itertools.product(("held", "released"), KINDS):
                    shortest = min((kept.keep, *kept.keep_by.values())) if keep is None else keep
                    now = time.time()
                    what = Search(recipient=recipient, reason=reason, older=shortest, kind=kind)
                    for row in list(index.search(what, now, state)):
                        if now - row.time < (kept.keep_for(kind, row.recipient) if keep is None else keep):
                            continue
                        if dry_run:
                            click.echo(f"{row.id}  {state}  {_safe(row.recipient)}  {_safe(row.subject)}")
                        elif state == "held":
                            delete(archive, row.id, _who(), "expire")
                        else:
                            archive.forget(row.id, "released")
                if not dry_run:
                    archive.collect(index.referenced)


@cli.command("digest")
@PATHS
@click.option("--recipient", default="", help="Only for such recipients, a glob: *@example.org.")
@click.option("--dry-run", is_flag=True, help="Print the digests, and send and remember nothing.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: recipient, messages, more, error.")
@click.pass_obj
def digest_(
    everything: tuple[Config, Archive],
    paths: tuple[str, ...],
    recipient: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send each recipient a list of what was held since the last digest. For cron; silent where all went well.

    With PATHs: from the quarantines of all Maildirs at or below them. Ends with 1 if one could not be sent.
    """
    failed = 0
    with contextlib.closing(_archives(everything, paths)) as archives:
        for archive in archives:
            try:
                with _index(archive) as index, digests.memory(archive) as known:
                    for one in digests.due(index, known, time.time()):
                        if not recipient or fnmatchcase(one.recipient.lower(), recipient.lower()):
                            failed += not _digest(everything[0], one, known, dry_run=dry_run, as_json=as_json)
            except (digests.Busy, OSError) as error:
                failed += 1
                click.echo(str(error), err=True)
    raise SystemExit(1 if failed else 0)


def _digest(
    settings: Config, one: digests.Digest, known: digests.Memory, *, dry_run: bool, as_json: bool
) -> bool:
    """Whether it went out, or would."""
    sender = settings.notices.sender.replace("{domain}", one.recipient.rpartition("@")[2])
    words = digests.Words(sender, settings.notices.admin, settings.quarantine.keep)
    error = "" if one.sendable else "is no address that mail can be sent to"
    if not error and not dry_run:
        now = time.time()
        try:
            wiring.send("", one.recipient, [digests.compose(one, words, now)])
        except DeliverError as failure:
            error = failure.detail
        else:
            known.remember(one.recipient, one.upto)
    if as_json:
        messages = [row._asdict() for row in one.rows]
        click.echo(json.dumps({"recipient": one.recipient, "messages": messages, "more": one.more, "error": error}))
    elif error:
        click.echo(f"{_safe(one.recipient)}: {error}", err=True)
    elif dry_run:
        click.echo(digests.text(one, words))
    return not error


@cli.command()
@click.option("--repair", "mend", is_flag=True, help="Mend what can be mended.")
@click.pass_obj
def verify(everything: tuple[Any, Archive], *, mend: bool) -> None:
    """Check every message against its envelope. Ends with 1 if something is wrong and was not mended."""
    archive = everything[1]
    wrong = 0
    with _index(archive) as index:
        if mend:
            for line in repair(archive, index.referenced, QUEUE_LIFETIME):
                click.echo(line)
        for id_, words in index.damaged:
            wrong += 1
            click.echo(f"{id_}: the envelope cannot be read: {words}")
        named = index.referenced()
        for name in sorted(set(archive.bodies()) - named):
            wrong += 1
            click.echo(f"{name}: nobody's envelope names it (a crash; the mail server has it still)")
        for id_ in archive.ids("releasing"):
            wrong += 1
            click.echo(f"{id_}: is being released, or that was interrupted")
        wrong += _unsound(archive)
    if not wrong:
        click.echo(f"{archive.path}: sound")
    raise SystemExit(1 if wrong else 0)


def _unsound(archive: Archive) -> int:
    import hashlib

    wrong = 0
    for id_ in archive.ids("held"):
        try:
            held = archive.read(id_)
            sum_ = hashlib.sha256()
            for chunk in archive.chunks(held):
                sum_.update(chunk)
        except KeyError as error:
            wrong += 1
            click.echo(f"{id_}: its message {error} is gone")
        except (ValueError, TypeError):
            continue  # said already
        else:
            if sum_.hexdigest() != held.digest:
                wrong += 1
                click.echo(f"{id_}: its message is not the one that was held (SHA-256 differs)")
    return wrong


def _read(archive: Archive, id_: str) -> Held:
    for state in ("held", "releasing", "released"):
        try:
            return archive.read(id_, state)
        except KeyError:
            continue
        except (ValueError, TypeError) as error:
            raise click.ClickException(f"{id_}: the envelope cannot be read: {error}") from error
    raise click.ClickException(f"{id_}: no such message is held here")


def _safe(text: str) -> str:
    """Without control characters: a Subject may try to write to the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "?", text)
