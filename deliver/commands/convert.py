"""`deliver convert`: another program's filter as rules of ours."""

import codecs
import json
import sys
from collections.abc import Callable
from importlib import import_module

import click

from deliver.convert.model import Conversion, Wrong
from deliver.convert.write import text

KINDS = ("maildrop", "procmail", "sieve", "qmail-scanner", "simcontrol")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--output", "-o", default="-", metavar="FILE", help="Where the rules go; standard output by default.")
@click.option("--strict", is_flag=True, help="End with 1 if anything could not be translated.")
@click.option("--json", "as_json", is_flag=True, help="What was and what was not translated, one object a line.")
def convert(kind: str, file: str, output: str, strict: bool, as_json: bool) -> None:
    """Print FILE, a filter for maildrop, procmail or Sieve, or a policy of qmail-scanner or simscan, as our rules.

    Every line that cannot be translated is reported with its number and the reason, on standard error and as a comment
    in its place. Ends with 1 if FILE cannot be read at all.
    """
    with click.open_file(file, "rb") as stream:
        data = stream.read()
    try:
        conversion = _converter(kind)(data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    except Wrong as error:
        raise click.ClickException(f"{file}:{error.line}: {error}") from error
    if as_json:
        _list(conversion)
    else:
        with click.open_file(output, "w", encoding="utf-8", errors="replace", atomic=output != "-") as out:
            out.write(text(conversion, file))
        for one in conversion.reported:
            said = "warning: " if one.warning else "not converted: "
            click.echo(f"{file}:{one.line}: {said}{one.reason}: {one.text.splitlines()[0]}", err=True)
    if strict and any(not one.warning for one in conversion.reported):
        sys.exit(1)


def _converter(kind: str) -> Callable[[str], Conversion]:
    found: Callable[[str], Conversion] = import_module(f"deliver.convert.{kind.replace('-', '_')}").convert
    return found


def _list(conversion: Conversion) -> None:
    for rule in conversion.rules:
        click.echo(json.dumps({"line": rule.line, "rule": rule.table}, default=str))
    for one in conversion.reported:
        words = {"line": one.line, "text": one.text, "reason": one.reason, "warning": one.warning}
        click.echo(json.dumps(words))
