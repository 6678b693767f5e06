"""`quarantine`: what is held, why, and letting it go."""

import contextlib
import errno
import getpass
import itertools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from deliver import config as configuration
from deliver import wiring
from deliver.admin import tree
from deliver.admin.progress import bar
from deliver.errors import DeliverError
from deliver.message import Message, Source, read_framing
from deliver.settings import Config, Quarantine
from deliver.units import counted, parse_span
from deliver.values import Content
from quarantine import digest as digests
from quarantine.release import NotHeld, NotReleased, delete, interrupted, release, repair, unsound, whole
from quarantine.shown import explained, safe
from quarantine.sqlite import Index, Row, Search
from quarantine.store import KINDS, Archive, Held

QUEUE_LIFETIME = 8 * 86400.0
"""Seconds: qmail keeps mail for 7 days (queuelifetime), Postfix for 5."""

_AT_ONCE = 1000  # messages of a list that are written at a time


class Span(click.ParamType[float]):
    """A span of time, as in the configuration: "30 d"."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The span in seconds."""
        try:
            return value if isinstance(value, float) else parse_span(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Commands(click.Group):
    """Says in a line what the system has against it."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except sqlite3.Error as error:
            raise click.ClickException(f"index.sqlite: {error}; it can be deleted, and is made anew") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # `head` has read enough
                raise
            words = f"{error.filename or 'the quarantine'}: {error.strerror or error}"
            raise click.ClickException(safe(words)) from error


class Desk(NamedTuple):
    """What the commands work with. ``owner`` is the directory whose owner's the quarantine is."""

    settings: Config
    archive: Archive
    owner: str


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    desk = Desk(settings, wiring.archive(where, own), own if where.startswith("{maildir}/") else where)
    context.obj = desk
    if context.invoked_subcommand not in _OF_TREES:
        context.with_resource(_owners_rights(desk.owner))


_OF_TREES = ("expire", "digest")
"""These may go through many mailboxes, and take the rights for each."""


@contextmanager
def _owners_rights(path: str) -> Iterator[None]:
    """With the rights of whose directory it is: what root delivers or writes there must be the owner's."""
    try:
        state = os.stat(path, follow_symlinks=False)
    except OSError:
        yield  # whoever needs it says that it is not there
        return
    with tree.as_owner(state):
        yield


def _there(archive: Archive) -> Archive:
    if not os.path.isdir(archive.path):
        words = "there is no quarantine: nothing was ever held, or it is elsewhere (--directory, --maildir)"
        raise click.ClickException(f"{archive.path}: {words}")
    return archive


@contextmanager
def _index(archive: Archive) -> Iterator[Index]:
    index = Index(_there(archive))
    try:
        index.update()
        yield index
    finally:
        index.close()


def _complain(words: object) -> None:
    """What went wrong; there may be a stranger's words in it."""
    click.echo(safe(str(words)), err=True)


def _who() -> str:
    """Who is at work: the person behind sudo(8), if there is one."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid that passwd(5) does not know; OSError since Python 3.13
        return str(os.getuid())


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
def list_(desk: Desk, /, *, released: bool, as_json: bool, **what: Any) -> None:
    """List what is held, oldest first."""
    with _index(desk.archive) as index:
        rows = index.search(Search(**what), time.time(), "released" if released else "held")
        shown = map(_as_json if as_json else _as_text, rows)
        while lines := list(itertools.islice(shown, _AT_ONCE)):
            click.echo("\n".join(lines))
        if stuck := list(interrupted(desk.archive)):
            them = f"{counted(len(stuck), 'message')} more: releases that were interrupted"
            _complain(f"{them}; `quarantine verify --repair` takes them back")
        if index.damaged:
            them = counted(len(index.damaged), "envelope")
            _complain(f"{them} cannot be read; `quarantine verify` says which and why")


_encode = json.JSONEncoder(check_circular=False).encode  # json.dumps makes one for each call


def _as_json(row: Row) -> str:
    return _encode(dict(zip(Row._fields, row, strict=True)))


def _as_text(row: Row) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.time))
    first = f"{row.id}  {when}  {row.size:>9}  {safe(row.recipient)}  {safe(row.sender or '<>')}"
    return f"{first}\n    {safe(row.subject) or '(no subject)'}\n    {safe(row.reason)}"


@cli.command()
@click.argument("id_", metavar="ID")
@click.option("--raw", is_flag=True, help="The whole message as it would be stored, to a file or a pipe.")
@click.pass_obj
def show(desk: Desk, id_: str, *, raw: bool) -> None:
    """Show one held message: why it is here, its header, and its text, with nothing that could harm a terminal."""
    held = _read(_there(desk.archive), id_)
    try:
        if raw:
            for chunk in whole(held, desk.archive):
                sys.stdout.buffer.write(chunk)
            return
        if id_ in desk.archive.ids("released"):
            click.echo("state      released; audit.log in the quarantine says when, by whom and to whom")
        for line in explained(held, desk.archive):
            click.echo(line)
    except KeyError as error:
        raise click.ClickException(safe(f"{id_}: its message {error.args[0]} is gone")) from error


@cli.command("release")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--to", default="", help="To this address instead: into its mailbox, or through the mail server.")
@click.option("--learn", type=click.Choice(["ham"]), help="Tell spamd that it is none: ham.")
@click.pass_obj
def release_(desk: Desk, ids: tuple[str, ...], to: str, learn: str | None) -> None:
    """Deliver held messages to where they were going, without filtering them again."""
    archive = _there(desk.archive)
    failed = 0
    try:
        teach = wiring.teacher(desk.settings) if learn else None
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
    if to and not digests.ADDRESS.fullmatch(to):
        raise click.UsageError(f'--to: expected an address, not "{to}"')
    for id_ in ids:
        try:
            held = release(archive, id_, _who(), to, wiring.mailbox_of(desk.settings, to) if to else "")
        except NotReleased as error:
            failed += 1
            _complain(error)
        else:
            click.echo(f"{id_}: released to {safe(to or f'{held.folder} of {held.recipient}')}")
            if teach:
                failed += not _learned(desk, held, teach)
    raise SystemExit(1 if failed else 0)


def _learned(desk: Desk, held: Held, teach: Callable[[Content, str, bool], bool]) -> bool:
    """Whether spamd was told; it is released all the same."""
    spamd = desk.settings.spamd
    if spamd and held.size > spamd.max_size:
        _complain(f"{held.id}: not told to spamd: it is larger than [spamd] max-size")
        return False
    try:
        message = Message(Source.of(b"".join(desk.archive.chunks(held))), read_framing(b""))
        new = teach(message, held.recipient, False)
    except (DeliverError, OSError, KeyError) as error:
        words = error.detail if isinstance(error, DeliverError) else f"{type(error).__name__}: {error}"
        _complain(f"{held.id}: not told to spamd: {words}")
        return False
    click.echo(f"{held.id}: {'learned as ham' if new else 'told as ham, which changed nothing'}")
    return True


@cli.command("delete")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete_(desk: Desk, ids: tuple[str, ...]) -> None:
    """Delete held messages."""
    archive = _there(desk.archive)
    failed = 0
    for id_ in ids:
        try:
            delete(archive, id_, _who())
        except NotReleased as error:
            failed += 1
            _complain(error)
    with _index(archive) as index:
        archive.collect(index.needed)
    raise SystemExit(1 if failed else 0)


PATHS = click.argument("paths", nargs=-1, metavar="[PATH...]", type=click.Path(exists=True, file_okay=False))


def _each(desk: Desk, paths: tuple[str, ...], work: Callable[[Archive, Index], int]) -> int:
    """Do the work in the quarantine, or in those of all Maildirs at or below the paths, each with its owner's rights.

    How often it failed: what is wrong with one mailbox must not stop the others.
    """
    failed = 0
    with contextlib.closing(_archives(desk, paths)) as found:
        for one in found:
            if isinstance(one, str):
                failed += 1
                _complain(one)
                continue
            try:
                with _index(one) as index:
                    failed += work(one, index)
            except (digests.Busy, sqlite3.Error, OSError) as error:
                failed += 1
                _complain(f"{one.path}: {getattr(error, 'strerror', '') or error}")
    return failed


def _archives(desk: Desk, paths: tuple[str, ...]) -> Generator[Archive | str]:
    """The quarantines; or why a directory cannot be looked through."""
    if not paths:
        with _owners_rights(desk.owner):
            yield desk.archive
        return
    directory = desk.settings.quarantine.directory
    if not directory.startswith("{maildir}/"):
        raise click.UsageError(f"the configuration has one quarantine for the site, {directory}: name no PATH")
    for path in map(os.path.realpath, paths):
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for one in tree.walk(top):
                if one.kind == "failed":
                    yield f"{os.path.join(path, one.path)}: {one.why}"
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
@click.option(
    "--json", "as_json", is_flag=True, help="With --dry-run: one object a line, as list has it, and its state."
)
@click.pass_obj
def expire(
    desk: Desk,
    paths: tuple[str, ...],
    keep: float | None,
    recipient: str,
    reason: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete what was held for longer than the configuration says. For cron; silent unless --dry-run.

    With PATHs: in the quarantines of all Maildirs at or below them. Ends with 1 if something could not be deleted.
    """
    wanted = Search(recipient=recipient, reason=reason)

    def work(archive: Archive, index: Index) -> int:
        old = list(_old(desk.settings.quarantine, index, wanted, keep))
        if dry_run:
            for state, row in old:
                words = f"{row.id}  {state}  {safe(row.recipient)}  {safe(row.subject)}"
                click.echo(json.dumps({**row._asdict(), "state": state}) if as_json else words)
            return 0
        failed = 0
        with bar(len(old), "expiring") as progress:
            for state, row in old:
                try:
                    delete(archive, row.id, _who(), "expire", state)
                except NotHeld:  # somebody was quicker
                    pass
                except NotReleased as error:
                    failed += 1
                    _complain(error)
                progress.update(1)
        archive.collect(index.needed)
        return failed

    raise SystemExit(1 if _each(desk, paths, work) else 0)


def _old(kept: Quarantine, index: Index, wanted: Search, keep: float | None) -> Iterator[tuple[str, Row]]:
    """What was held for too long, and whether it is held still or was released."""
    shortest = min((kept.keep, *kept.keep_by.values())) if keep is None else keep
    now = time.time()
    for state, kind in itertools.product(("held", "released"), KINDS):
        for row in index.search(wanted._replace(older=shortest, kind=kind), now, state):
            if now - row.time >= (kept.keep_for(kind, row.recipient) if keep is None else keep):
                yield state, row


@cli.command("digest")
@PATHS
@click.option("--recipient", default="", help="Only for such recipients, a glob: *@example.org.")
@click.option("--dry-run", is_flag=True, help="Print the digests, and send and remember nothing.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: recipient, messages, more, error.")
@click.pass_obj
def digest_(
    desk: Desk,
    paths: tuple[str, ...],
    recipient: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send each recipient a list of what was held since the last digest. For cron; silent where all went well.

    With PATHs: from the quarantines of all Maildirs at or below them. Ends with 1 if one could not be sent.
    """

    def work(archive: Archive, index: Index) -> int:
        with digests.memory(archive) as known:
            due = digests.due(index, known, time.time(), recipient)
            return sum(not _digest(desk.settings, one, known, dry_run=dry_run, as_json=as_json) for one in due)

    raise SystemExit(1 if _each(desk, paths, work) else 0)


def _digest(settings: Config, one: digests.Digest, known: digests.Memory, *, dry_run: bool, as_json: bool) -> bool:
    """Whether it went out, or would."""
    sender = settings.notices.sender.replace("{domain}", one.recipient.rpartition("@")[2])
    spans = [settings.quarantine.keep_for(kind, one.recipient) for kind in KINDS]
    words = digests.Words(sender, settings.notices.admin, (min(spans), max(spans)))
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
        _complain(f"{one.recipient}: {error}")
    elif dry_run:
        click.echo(digests.text(one, words))
    return not error


@cli.command()
@click.option("--repair", "mend", is_flag=True, help="Mend what can be mended.")
@click.option("--json", "as_json", is_flag=True, help="One object a line for each fault: text, mended.")
@click.pass_obj
def verify(desk: Desk, *, mend: bool, as_json: bool) -> None:
    """Check every message against its envelope. Ends with 1 if something is wrong and was not mended."""
    archive = desk.archive
    wrong = 0

    def say(text: str, *, mended: bool = False) -> None:
        nonlocal wrong
        wrong += not mended
        click.echo(json.dumps({"text": text, "mended": mended}) if as_json else safe(text))

    with _index(archive) as index:
        if mend:
            for line in repair(archive, index.needed, QUEUE_LIFETIME):
                archive.note(time=time.time(), who=_who(), did="repair", what=line)
                say(line, mended=True)
        orphans = archive.collect(index.referenced, remove=False)
        for id_, words in index.damaged:
            say(f"{id_}: the envelope cannot be read: {words}")
        for name in sorted(orphans):
            say(f"{name}: nobody's envelope names it (a crash; the mail server has it still)")
        for id_ in archive.ids("releasing"):
            say(f"{id_}: is being released, or that was interrupted")
        ids = archive.ids()
        with bar(len(ids), "verifying") as progress:
            for id_ in ids:
                if line := unsound(archive, id_):
                    say(line)
                progress.update(1)
    if not wrong and not as_json:
        click.echo(f"{archive.path}: sound")
    raise SystemExit(1 if wrong else 0)


def _read(archive: Archive, id_: str) -> Held:
    for state in ("held", "releasing", "released"):
        try:
            return archive.read(id_, state)
        except KeyError:
            continue
        except ValueError as error:
            raise click.ClickException(safe(f"{id_}: the envelope cannot be read: {error}")) from error
    raise click.ClickException(f"{id_}: no such message is held here")
