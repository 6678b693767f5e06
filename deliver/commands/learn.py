"""`deliver learn`: what people moved into and out of the spam folder is told to spamd."""

import contextlib
import json
import time
from collections import Counter

import click

from deliver import wiring
from deliver.admin import learn as work
from deliver.admin.learn import KINDS, Result, SpamdFails
from deliver.commands import mailboxes
from deliver.errors import DeliverError
from deliver.units import counted


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Say what would be told, and tell nothing.")
@click.option("--config", "config_path", default="", help="The site's configuration, with [spamd] and [learn].")
@click.option("-v", "--verbose", is_flag=True, help="A line for each mailbox that has something to tell.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: each mailbox, then the summary.")
def learn(paths: tuple[str, ...], dry_run: bool, config_path: str, verbose: bool, as_json: bool) -> None:
    """Tell spamd what people moved into and out of their spam folders, from every Maildir at or below PATH.

    Each message once, as [learn] says. Ends with 1 if something could not be read or told.
    """
    settings = mailboxes.site(config_path)
    try:
        teach = wiring.teacher(settings)
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
    now = time.time()
    total: Counter[str] = Counter()
    trouble = ""
    with contextlib.closing(mailboxes.each(paths, "learning")) as found:
        for top, one, shown in found:
            if one.kind == "failed":
                result = Result(shown, {}, why=one.why)
            else:
                total["mailboxes"] += 1
                try:
                    result = work.learn(top, one.path, shown, settings, teach, now, dry_run=dry_run)
                except SpamdFails as error:
                    result, trouble = error.result, str(error)
            total.update(result.told)
            for name in ("known", "large", "left", "spared"):
                total[name] += getattr(result, name)
            total["failed"] += bool(result.why)
            _say(result, verbose, as_json)
            if trouble:
                break
    _sum_up(total, dry_run, as_json)
    if trouble:
        raise click.ClickException(f"{trouble}; the rest comes with the next run")
    raise SystemExit(1 if total["failed"] else 0)


def _sum_up(total: Counter[str], dry_run: bool, as_json: bool) -> None:
    names = ("mailboxes", *KINDS, "known", "large", "left", "spared", "failed")
    if as_json:
        click.echo(json.dumps({**{name: total[name] for name in names}, "dry-run": dry_run}))
        return
    told = "would be told" if dry_run else "told"
    boxes = counted(total["mailboxes"], "mailbox", "mailboxes")
    words = f"{boxes}, {total['spared']} spared, {total['failed']} failed; "
    words += f"{told}: {total['spam']} spam, {total['ham']} ham ({total['known']} changed nothing); "
    click.echo(words + f"{total['large']} too large, {total['left']} left for the next run")
    number = total["spam"] + total["ham"]
    if number and number == total["known"]:
        hint = "has it Bayes data that it can write (use_bayes, bayes_path)?"
        click.echo(f"spamd learned nothing at all: {hint}", err=True)


def _say(result: Result, verbose: bool, as_json: bool) -> None:
    if as_json:
        said = result._asdict()
        said["error"] = said.pop("why")
        click.echo(json.dumps(said))
    elif result.why:
        click.echo(f"{result.maildir}: {result.why}", err=True)
    elif verbose and (result.told or result.spared):
        words = ", ".join(f"{number} {kind}" for kind, number in result.told.items()) or "spared"
        click.echo(f"{result.maildir}: {words}")
