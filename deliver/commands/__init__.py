"""The commands for people. Each is one module; the delivering path loads none of them."""

import io
import sys

import click

from deliver import __version__
from deliver.commands.adopt import adopt
from deliver.commands.check import check
from deliver.commands.convert import convert
from deliver.commands.doctor import doctor
from deliver.commands.enable import disable, enable, status
from deliver.commands.expire import expire
from deliver.commands.learn import learn
from deliver.commands.quota import quota
from deliver.commands.replay import replay
from deliver.commands.sample import sample
from deliver.commands.serve import serve
from deliver.commands.stats import stats


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deliver")
def cli() -> None:
    """Deliver mail through scanners and rules into a Maildir.

    Without a command: one message on standard input, as an MTA gives it; see deliver(1).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files are bytes, and a report must not end at one
            stream.reconfigure(errors="backslashreplace")


for command in (
    adopt,
    check,
    convert,
    disable,
    doctor,
    enable,
    expire,
    learn,
    quota,
    replay,
    sample,
    serve,
    stats,
    status,
):
    cli.add_command(command)
