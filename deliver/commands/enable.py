"""`deliver enable`, `disable` and `status`: qmailadmin's spam box from the command line."""

import json
import os
from collections.abc import Callable

import click

from deliver import config
from deliver.admin import adopt, tickbox
from deliver.admin.qmailfile import Line
from deliver.admin.tickbox import CannotDo, Mailbox
from deliver.commands.adopt import COMMAND, missing
from deliver.errors import DeliverError
from deliver.settings import Config

Change = Callable[[tuple[Line, ...], Mailbox], list[Line]]


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--command", default=COMMAND, show_default=True, help="What the line calls.")
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def enable(addresses: tuple[str, ...], command: str, config_path: str, as_json: bool) -> None:
    """Let the mail of ADDRESS pass the filter: a vpopmail address, or the name of a user of the host.

    Writes .qmail as qmailadmin does when its spam box is ticked. Ends with 1 if that cannot be for one of them.
    """
    if why := missing(command):
        raise click.ClickException(why)
    site = adopt.Site(command, _config(config_path))

    def change(lines: tuple[Line, ...], box: Mailbox) -> list[Line]:
        home = adopt.Home(box.directory, os.path.dirname(box.directory) if box.virtual else box.directory)
        return tickbox.enabled(lines, home, site, virtual=box.virtual)

    _each(addresses, site.config, change, as_json)


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def disable(addresses: tuple[str, ...], config_path: str, as_json: bool) -> None:
    """Let the mail of ADDRESS go to its Maildir without the filter; forwards and vacation lines stay."""
    _each(addresses, _config(config_path), tickbox.disabled, as_json)


@click.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def status(addresses: tuple[str, ...], config_path: str, as_json: bool) -> None:
    """Say whether the mail of ADDRESS passes the filter."""
    _each(addresses, _config(config_path), None, as_json)


def _config(path: str) -> Config:
    """The site's if there is one: where users are, and what a rewritten line must not lose."""
    found = config.find(path, os.environ.get("DELIVER_CONFIG", ""))
    if not path and not os.path.exists(found):
        return Config()
    try:
        return config.load(found)
    except DeliverError as error:
        raise click.ClickException(error.detail) from error


def _each(addresses: tuple[str, ...], settings: Config, change: Change | None, as_json: bool) -> None:
    failures = 0
    for address in addresses:
        why = ""
        found = {"address": address, "directory": "", "state": "", "words": ""}
        try:
            box = tickbox.look_up(address, settings.users)
            found["directory"] = box.directory
            lines = tickbox.read(box)
            if change:
                after = change(lines, box)
                if after != list(lines):
                    tickbox.write(box, lines, after)
                lines = tuple(after)
            found["state"], found["words"] = tickbox.state(lines, virtual=box.virtual)
        except CannotDo as error:
            why = str(error)
        except DeliverError as error:
            why = error.detail
        except OSError as error:
            why = f"{error.filename or '.qmail'}: {error.strerror or error}"
        failures += bool(why)
        if as_json:
            click.echo(json.dumps({**found, "error": why}))
        elif why:
            click.echo(why if why.startswith(f"{address}: ") else f"{address}: {why}", err=True)
        else:
            click.echo(f"{address}: {found['state']} ({found['words']})")
    raise SystemExit(1 if failures else 0)
