"""`deliver expire`: old mail leaves the folders, as [expire] says."""

import json
import time

import click

from deliver.admin import expire as work
from deliver.admin.expire import CLASSES, Result, Tally
from deliver.commands import mailboxes
from deliver.units import counted


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("--config", "config_path", default="", help="The site's configuration, with [expire].")
@click.option("-v", "--verbose", is_flag=True, help="A line for each mailbox that loses something.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: each mailbox, then the summary.")
def expire(paths: tuple[str, ...], dry_run: bool, config_path: str, verbose: bool, as_json: bool) -> None:
    """Delete old mail from every Maildir at or below PATH, after as many days as [expire] says.

    Ends with 1 if something could not be read or deleted.
    """
    settings = mailboxes.site(config_path)
    if settings.expire is None:
        raise click.ClickException("the configuration has no [expire] table, so nothing is too old")
    now = time.time()
    total = dict.fromkeys(CLASSES, Tally())
    looked_at = spared = failures = 0
    for top, one, shown in mailboxes.each(paths, "expiring"):
        if one.kind == "failed":
            result = Result(shown, {}, one.why)
        else:
            result = work.expire(top, one.path, shown, settings, now, dry_run=dry_run)
            looked_at += 1
        spared += result.spared
        failures += bool(result.why)
        for kind, tally in result.deleted.items():
            total[kind] = _sum(total[kind], tally)
        _say(result, verbose, as_json)
    summary = {kind: tally._asdict() for kind, tally in total.items()}
    if as_json:
        numbers = {"mailboxes": looked_at, "spared": spared, "failed": failures}
        click.echo(json.dumps({**numbers, "dry-run": dry_run, "deleted": summary}))
    else:
        words = ", ".join(f"{kind} {_words(tally)}" for kind, tally in total.items())
        would = "would be " if dry_run else ""
        boxes = counted(looked_at, "mailbox", "mailboxes")
        click.echo(f"{boxes}, {spared} spared, {failures} failed; {would}deleted: {words}")
    raise SystemExit(1 if failures else 0)


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(one.messages + other.messages, one.size + other.size)


def _words(tally: Tally) -> str:
    return f"{tally.messages} ({tally.size / 1e6:.1f} MB)" if tally.messages else "0"


def _say(result: Result, verbose: bool, as_json: bool) -> None:
    if as_json:
        deleted = {kind: tally._asdict() for kind, tally in result.deleted.items()}
        said = {"maildir": result.maildir, "deleted": deleted, "spared": result.spared, "error": result.why}
        click.echo(json.dumps(said))
    elif result.why:
        click.echo(f"{result.maildir}: {result.why}", err=True)
    elif verbose and (result.deleted or result.spared):
        words = ", ".join(f"{kind} {_words(tally)}" for kind, tally in result.deleted.items()) or "spared"
        click.echo(f"{result.maildir}: {words}")
