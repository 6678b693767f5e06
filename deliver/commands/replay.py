"""`deliver replay`: what would happen to messages, and why."""

import asyncio
import os
import sys

import click

from deliver import config
from deliver.errors import DeliverError
from deliver.replay import Settings, has_expectation, messages_in
from deliver.replay import replay as replay_one


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--plain", is_flag=True, help="Without a configuration: no scanners, no rules of the site.")
@click.option("--user-rules", default="", help="The owner's own file; default: the one beside --maildir.")
@click.option("--maildir", default="", help="The mailbox whose folders and quota count.")
@click.option("--sender", default="", help="The envelope sender; default: the message's Return-Path.")
@click.option("--recipient", default="", help="The recipient; default: the message's Delivered-To.")
@click.option("--scan/--no-scan", default=True, help="Ask the scanners (default), or take every message as unscanned.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option("--expect", is_flag=True, help="Compare with NAME.expect.toml beside each message; 1 if one differs.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what happens, not the steps.")
def replay(
    paths: tuple[str, ...],
    config_path: str,
    plain: bool,
    user_rules: str,
    maildir: str,
    sender: str,
    recipient: str,
    scan: bool,
    as_json: bool,
    expect: bool,
    quiet: bool,
) -> None:
    """Say what would happen to each message under PATH (a file, a folder, a Maildir, - for standard input) and why.

    Nothing is delivered and nothing is changed.
    """
    files = list(messages_in(paths))
    settings = Settings(
        config=_config(config_path, plain, files),
        user_file=user_rules or _beside(maildir),
        maildir=maildir,
        sender=sender,
        recipient=recipient,
        scan=scan,
    )
    wrong = unexpected = 0
    progress = len(files) > 20 and sys.stderr.isatty() and not sys.stdout.isatty()
    with click.progressbar(files, file=sys.stderr, hidden=not progress, label="replaying") as bar:
        for path in bar:
            if expect and not has_expectation(path):
                unexpected += 1
                continue
            try:
                result = asyncio.run(replay_one(path, settings))
            except (DeliverError, OSError) as error:
                raise click.ClickException(getattr(error, "detail", "") or str(error)) from error
            wrong += bool(result.wrong) and expect
            if not expect:
                result = result._replace(wrong=())
            if as_json:
                click.echo(result.as_json())
            elif result.wrong or not expect:
                click.echo(result.as_text(explain=not quiet))
    if expect and not as_json:
        tried = len(files) - unexpected
        click.echo(
            f"{tried} messages with expectations, {wrong} not as expected" + _skipped(unexpected), err=bool(wrong)
        )
    raise SystemExit(1 if wrong else 0)


def _skipped(number: int) -> str:
    return f"; {number} without" if number else ""


def _beside(maildir: str) -> str:
    path = os.path.join(os.path.dirname(os.path.abspath(maildir)), "mailfilter.toml") if maildir else ""
    return path if path and os.path.exists(path) else ""


def _config(path: str, plain: bool, files: list[str]) -> config.Config:
    """The site's configuration; none is needed where every message brings its own."""
    own = all(os.path.exists(f"{os.path.splitext(file)[0]}.rules.toml") for file in files)
    if plain or (own and not path and files):
        return config.Config()
    try:
        return config.load(config.find(path, os.environ.get("DELIVER_CONFIG", "")))
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
