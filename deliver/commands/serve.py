"""`deliver serve`: the resident service."""

import os

import click

from deliver import config


@click.command()
@click.option("--config", "path", default="", help="The configuration; default: $DELIVER_CONFIG, else the site's.")
def serve(path: str) -> None:
    """Deliver for the command and by LMTP, in the foreground, until SIGTERM; SIGHUP reads the configuration again."""
    from deliver.service import serve as run

    raise SystemExit(run(config.find(path, os.environ.get("DELIVER_CONFIG", ""))))
