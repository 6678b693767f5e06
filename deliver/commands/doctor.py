"""`deliver doctor`: is each part there, and how fast; what to do about what is not."""

import json
import os
import time
from collections import Counter

import click

from deliver import config
from deliver.admin import doctor as work
from deliver.admin import doctor_mailboxes, doctor_scanners, tree
from deliver.admin.doctor import Said
from deliver.admin.progress import bar
from deliver.admin.qmailfile import open_directory
from deliver.commands.adopt import COMMAND
from deliver.commands.sample import sample_message
from deliver.errors import DeliverError
from deliver.units import counted


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH...]", type=click.Path(exists=True, file_okay=False))
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def doctor(paths: tuple[str, ...], config_path: str, as_json: bool) -> None:
    """Examine scanners, service, quarantine and configuration, and every mailbox at or below PATH.

    Changes nothing. Ends with 1 if there is a problem.
    """
    path = config.find(config_path, os.environ.get("DELIVER_CONFIG", ""))
    try:
        settings = config.load(path)
    except DeliverError:  # the first check says it
        settings = None
    samples = {kind: sample_message(kind).encode() for kind in ("ham", "spam", "virus")}
    case = work.Case(path, settings, samples, now=time.time(), command=COMMAND)
    report = _Report(as_json)
    for name, said in work.examine(case, (*work.CHECKS, *doctor_scanners.CHECKS)):
        report.say(name, said)
    for one in map(os.path.realpath, paths):
        _mailboxes(case, one, report)
    report.end()
    raise SystemExit(1 if report.levels["problem"] else 0)


def _mailboxes(case: work.Case, path: str, report: "_Report") -> None:
    try:
        top = open_directory(path)
    except OSError as error:
        report.say("mailboxes", Said("problem", f"{path}: {error.strerror}"))
        return
    try:
        everything = list(tree.walk(top))
        found = [one for one in everything if one.kind in ("maildir", "failed")]
        for one in everything:
            if one.kind == "qmail":
                for words in doctor_mailboxes.homeless(case, top, one.path, os.path.join(path, one.path)):
                    report.say(".qmail", words)
        healthy = 0
        with bar(len(found), "examining") as progress:
            for one in found:
                shown = os.path.join(path, one.path) if one.path else path
                if one.kind == "failed":
                    report.say("mailboxes", Said("warning", f"{shown}: {one.why}"))
                    continue
                said = list(doctor_mailboxes.examine(case, top, one.path, shown))
                for name, words in said:
                    report.say(name, words)
                healthy += not said
                progress.update(1)
        boxes = counted(len(found), "mailbox", "mailboxes")
        if not found:
            summary = Said("warning", f"{path}: there is no Maildir at or below it", "`deliver` never makes one")
        elif ill := len(found) - healthy:
            summary = Said("warning", f"{path}: {ill} of {boxes} with a warning or problem, see above")
        else:
            summary = Said("ok", f"{path}: {boxes}, nothing to complain of")
        report.say("mailboxes", summary)
    finally:
        os.close(top)


class _Report:
    """A line for each answer."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.levels: Counter[str] = Counter()
        self._said: set[tuple[str, Said]] = set()

    def say(self, name: str, said: Said) -> None:
        if (name, said) in self._said:  # of another mailbox of the same owner
            return
        self._said.add((name, said))
        self.levels[said.level] += 1
        if self._as_json:
            click.echo(json.dumps({"check": name, "level": said.level, "text": said.words, "advice": said.advice}))
        else:
            click.echo(f"{said.level:8} {name}: {said.words}" + (f"\n         -> {said.advice}" if said.advice else ""))

    def end(self) -> None:
        if not self._as_json:
            problems, warnings = (counted(self.levels[level], level) for level in ("problem", "warning"))
            click.echo(f"{problems}, {warnings}")
