"""`deliver replay`: what would happen to messages, and why."""

import asyncio
import os
import sys

import click

from deliver.commands.mailboxes import site
from deliver.errors import DeliverError
from deliver.replay import Changes, Replayer, Result, Settings, has_expectation, lies_in, messages_in
from deliver.settings import Config


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--plain", is_flag=True, help="Without a configuration: no scanners, no rules of the site.")
@click.option("--user-rules", default="", help="The owner's own file; default: the one beside --maildir.")
@click.option("--maildir", default="", help="The mailbox whose folders count; default: that of the messages.")
@click.option("--sender", default="", help="The envelope sender; default: the message's Return-Path.")
@click.option("--recipient", default="", help="The recipient; default: the message's Delivered-To.")
@click.option("--scan/--no-scan", default=True, help="Ask the scanners (default), or take every message as unscanned.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.option("--expect", is_flag=True, help="Compare with NAME.expect.toml beside each message; 1 if one differs.")
@click.option("--summary", is_flag=True, help="Say only, at the end, how many messages would go where.")
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
    summary: bool,
    quiet: bool,
) -> None:
    """Say what would happen to each message under PATH (a file, a folder, a Maildir, - for standard input) and why.

    Nothing is delivered and nothing is changed. Of a Maildir, its Sent, Drafts and Trash are left out; at the end
    stands what would change against where the mail lies now.
    """
    files = list(messages_in(paths))
    settings = Settings(
        config=_config(config_path, plain, files),
        user_file=user_rules,
        maildir=maildir or _mailbox(files),
        sender=sender,
        recipient=recipient,
        scan=scan,
    )
    chosen = [path for path in files if not expect or has_expectation(path)]
    replayer = Replayer(settings)
    changes = Changes()
    wrong = unread = 0

    def tell(path: str, result: Result | Exception) -> None:
        nonlocal wrong, unread
        if isinstance(result, DeliverError):
            raise click.ClickException(result.detail)
        if isinstance(result, Exception):  # a mail program has moved it meanwhile
            click.echo(f"{path}: {getattr(result, 'strerror', '') or result}", err=True)
            unread += 1
            return
        wrong += bool(result.wrong) and expect
        changes.add(result)
        result = result if expect else result._replace(wrong=())
        if as_json:
            click.echo(result.as_json())
        elif result.wrong or not (expect or summary):
            click.echo(result.as_text(explain=not quiet))

    shown = len(chosen) > 20 and sys.stderr.isatty() and (summary or not sys.stdout.isatty())
    with click.progressbar(length=len(chosen), file=sys.stderr, hidden=not shown, label="replaying") as bar:

        async def run() -> None:
            async for path, result in replayer.replay_all(chosen):
                tell(path, result)
                bar.update(1)

        asyncio.run(run())
    for why in replayer.unused.values():
        click.echo(why, err=True)
    if expect and not as_json:
        click.echo(
            f"{len(chosen)} messages with expectations, {wrong} not as expected" + _skipped(len(files) - len(chosen)),
            err=bool(wrong),
        )
    elif not as_json and (summary or len(chosen) > 1):
        click.echo("\n".join(changes.lines()))
    raise SystemExit(1 if wrong or unread or user_rules in replayer.unused else 0)


def _mailbox(files: list[str]) -> str:
    """The Maildir that all of the messages lie in; "" where there is no such one."""
    homes = {lies_in(path)[0] for path in files}
    return homes.pop() if len(homes) == 1 else ""


def _skipped(number: int) -> str:
    return f"; {number} without" if number else ""


def _config(path: str, plain: bool, files: list[str]) -> Config:
    """The site's configuration; none is needed where every message brings its own."""
    own = all(os.path.exists(f"{os.path.splitext(file)[0]}.rules.toml") for file in files)
    if plain or (own and not path and files):
        return Config()
    return site(path)
