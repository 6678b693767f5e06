"""`deliver stats`: what the log says about many deliveries."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import click

from deliver import config
from deliver.admin.stats import Stats
from deliver.errors import DeliverError
from deliver.rules.placeholders import printable


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--config", "config_path", default="", help="The site's configuration, which says where the log is.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def stats(files: tuple[str, ...], config_path: str, as_json: bool) -> None:
    """Sum up the log: FILEs, "-" for standard input, by default the one that [log] names.

    What syslog writes before a line is skipped, and so are other programs' lines.
    """
    found = Stats()
    for path in files or (_log(config_path),):
        with _opened(path) as file:
            found.read(file)
    if as_json:
        click.echo(json.dumps(found.summary()))
    else:
        click.echo("\n".join(_words(found.summary())))


def _log(config_path: str) -> str:
    try:
        to = config.load(config.find(config_path, os.environ.get("DELIVER_CONFIG", ""))).log.to
    except DeliverError as error:
        raise click.ClickException(error.detail) from error
    if to in ("syslog", "stderr"):
        where = f"the log goes to {to} ([log] to): give it here, as in"
        raise click.ClickException(f"{where} `journalctl -t deliver -o cat | deliver stats -`, or name syslog's files")
    return to


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """The file, with a bar on a terminal where it is long."""
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 10_000_000 or not sys.stderr.isatty():
                yield file
                return
            with click.progressbar(length=size, label=path, file=sys.stderr) as bar:
                yield _Watched(file, bar)  # type: ignore[misc]
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}") from error


class _Watched:
    """Lines of a file, while a bar moves."""

    def __init__(self, file: BinaryIO, bar: Any) -> None:
        self._file = file
        self._bar = bar

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            self._bar.update(len(line))
            yield line


def _words(said: dict[str, Any]) -> Iterator[str]:
    if not said["messages"]:
        yield "no deliveries in the log"
        if said["unreadable"]:
            yield f"{said['unreadable']} lines could not be read"
        return
    begin, end = (time.strftime("%Y-%m-%d %H:%M", time.localtime(said[key])) for key in ("first", "last"))
    yield f"{begin} to {end}: {said['messages']} deliveries, {said['bytes'] / 1e6:.1f} MB"
    yield f"spam {said['spam']}, viruses {said['viruses']}, policy {said['policy']}"
    yield "outcomes: " + ", ".join(f"{name} {number}" for name, number in said["outcomes"].items())
    for name, one in said["scanners"].items():
        findings = ", ".join(f"{kind} {number}" for kind, number in sorted(one["findings"].items()))
        yield f"{printable(name)}: median {one['median']:g} ms, 95th {one['95th']:g} ms; {printable(findings)}"
    for title, key in (("most mail for", "recipients"), ("viruses", "names"), ("failures", "failures")):
        if said[key]:
            yield f"{title}:"
            yield from (f"  {number:>8}  {printable(name)}" for name, number in said[key].items())
    yield f"warnings {said['warnings']}, lines that could not be read {said['unreadable']}"
    for day, one in said["days"].items():
        yield f"{day}: " + ", ".join(f"{name} {number}" for name, number in one.items())
