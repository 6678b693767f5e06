"""`deliver quota`: what mailboxes hold and may hold, and counting anew."""

import json
import os

import click

from deliver import quota as work
from deliver.admin.qmailfile import open_directory
from deliver.admin.tree import as_owner


@click.group()
def quota() -> None:
    """Show or recount the quota of Maildirs."""


@quota.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def show(paths: tuple[str, ...], as_json: bool) -> None:
    """Say what each Maildir holds by its maildirsize and on disk. Ends with 1 if one cannot be read."""
    _each(paths, as_json, anew=False)


@quota.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def recount(paths: tuple[str, ...], as_json: bool) -> None:
    """Count the messages of each Maildir and write maildirsize anew; its limit stays."""
    _each(paths, as_json, anew=True)


def _each(paths: tuple[str, ...], as_json: bool, *, anew: bool) -> None:
    failures = 0
    for path in paths:
        try:
            said = _one(path, anew=anew)
        except OSError as error:
            failures += 1
            if as_json:
                click.echo(json.dumps({"maildir": path, "error": error.strerror or str(error)}))
            else:
                click.echo(f"{path}: {error.strerror or error}", err=True)
            continue
        if as_json:
            click.echo(json.dumps(said))
        else:
            disk = "; on disk are {disk-size} bytes and {disk-count} messages".format_map(said)
            click.echo(f"{path}: {said['words']}{'' if said['agrees'] else disk}")
    raise SystemExit(1 if failures else 0)


def _one(path: str, *, anew: bool) -> dict[str, object]:
    maildir = open_directory(path)
    try:
        if not {"cur", "new", "tmp"} <= set(os.listdir(maildir)):
            raise OSError("is not a Maildir")
        with as_owner(os.fstat(maildir)):
            if anew:
                work.recount(maildir)
            usage = work.assess(maildir, None)
            size, count = work.measure(maildir)
    finally:
        os.close(maildir)
    found = {"maildir": path, "disk-size": size, "disk-count": count}
    if usage is None:
        return {**found, "agrees": True, "words": f"no quota is kept; {size} bytes and {count} messages"}
    return {
        **found,
        "size": usage.size,
        "count": usage.count,
        "limit-size": usage.limit.size,
        "limit-count": usage.limit.count,
        "percent": usage.percent,
        "agrees": (usage.size, usage.count) == (size, count),
        "words": f"{usage.words()}, {usage.percent} %",
    }
