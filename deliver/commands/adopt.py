"""`deliver adopt`: the lines of .qmail files that call maildrop become ours; and the way back."""

import difflib
import itertools
import json
import os
import sys
from collections import Counter

import click

from deliver import config
from deliver.admin import adopt as work
from deliver.admin.adopt import Decision, Failed
from deliver.admin.progress import bar
from deliver.errors import DeliverError
from deliver.settings import Config
from deliver.units import counted


def installed(prefix: str) -> str:
    """The command that `make install` put beside the environment at ``prefix``; else where it does by default."""
    found = f"{prefix.removesuffix('/lib/deliver')}/bin/deliver"
    return found if prefix.endswith("/lib/deliver") and os.access(found, os.X_OK) else "/usr/local/bin/deliver"


COMMAND = installed(sys.prefix)
"""What a line calls, if nothing else is said."""


@click.command()
@click.argument("root", required=False, type=click.Path(file_okay=False))
@click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and change nothing.")
@click.option("--backup", default="", metavar="DIR", help="Where to keep the old files; outside ROOT.")
@click.option("--undo", default="", metavar="DIR", help="Make the files that DIR keeps what they were.")
@click.option("--command", default=COMMAND, show_default=True, help="What to call in maildrop's place.")
@click.option("--replaces", multiple=True, metavar="FILE", help="A filter file whose work the configuration does.")
@click.option("--config", "config_path", default="", help="The site's configuration.")
@click.option("-v", "--verbose", is_flag=True, help="Show every line of every file and what it is.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: each file, then the summary.")
def adopt(
    root: str | None,
    dry_run: bool,
    backup: str,
    undo: str,
    command: str,
    replaces: tuple[str, ...],
    config_path: str,
    verbose: bool,
    as_json: bool,
) -> None:
    """Let the .qmail files below ROOT (a vpopmail domains tree, or /home) call deliver where they call maildrop.

    All other lines stay, and so do owner and mode. Ends with 1 if something could not be read or written.
    """
    if bool(root) == bool(undo):
        raise click.UsageError("say either ROOT or --undo DIR")
    try:
        if undo:
            _undo(undo, dry_run, as_json)
        else:
            site = work.Site(command, _config(config_path), replaces)
            why = missing(command)
            if why and not dry_run:
                raise click.ClickException(why)
            if why:
                click.echo(f"warning: {why}", err=True)
            _adopt(str(root), site, backup or work.default_backup(), dry_run, verbose, as_json)
    except BlockingIOError as error:
        raise click.ClickException("another adopt is at work there") from error
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except DeliverError as error:
        raise click.ClickException(error.detail) from error


def _config(path: str) -> Config:
    """The site's; without one nothing is scanned, and nobody's conversion can be checked against it."""
    found = config.find(path, os.environ.get("DELIVER_CONFIG", ""))
    if not path and not os.path.exists(found):
        raise click.ClickException(f"{found} is not there: write the site's configuration first, or name it: --config")
    return config.load(found)


def missing(command: str) -> str:
    """Why no line may call this, "" if one may: with a command that is not there every message would wait."""
    program = command.partition(" ")[0]
    if not os.path.isabs(program):
        return f'"{program}" is no absolute path, such as --command {COMMAND}'
    if not os.path.isfile(program) or not os.access(program, os.X_OK):
        return f'there is no program "{program}": name where it is installed, --command /opt/x/bin/deliver'
    return ""


def _adopt(root: str, site: work.Site, backup: str, dry_run: bool, verbose: bool, as_json: bool) -> None:
    report = _Report(dry_run, verbose, as_json)
    with work.Root(root) as tree:
        journal = None if dry_run else work.Journal(backup, tree)
        found = list(work.find(tree))
        paths = [path for path in found if isinstance(path, str)]
        for failed in found:
            if isinstance(failed, Failed):
                report.failed(failed)
        try:
            with bar(len(paths), "adopting") as progress:
                for one in work.run(tree, paths, site, journal, progress.update):
                    if isinstance(one, Failed):
                        report.failed(one)
                    else:
                        report.decided(one)
        except KeyboardInterrupt:
            click.echo("interrupted: every file is as it was or done; run it again to go on", err=True)
            report.errors += 1
        finally:
            if journal:
                journal.close()
    report.end(backup if report.changed and not dry_run else "", site.command)
    raise SystemExit(1 if report.errors else 0)


class _Report:
    """Says what was found and done."""

    def __init__(self, dry_run: bool, verbose: bool, as_json: bool) -> None:
        self._dry_run = dry_run
        self._verbose = verbose
        self._as_json = as_json
        self._kinds = Counter[str]()
        self.files = self.changed = self.left = self.errors = self.removed = self.stopping = 0

    def failed(self, one: Failed) -> None:
        self.errors += 1
        if self._as_json:
            click.echo(json.dumps({"file": one.path, "action": "failed", "why": one.why}))
        else:
            click.echo(f"{one.path}: {one.why}", err=True)

    def decided(self, one: Decision) -> None:
        self.files += 1
        self._kinds.update(line.kind.value for line in one.lines)
        changes = one.before != one.after
        self.changed += changes
        self.left += bool(one.left)
        self.removed += sum(note.why != "rewritten" for note in one.notes)
        self.stopping += b"--stop-after-spam" in one.after and changes
        (self._object if self._as_json else self._text)(one, changes)

    def _object(self, one: Decision, changes: bool) -> None:
        said = {note.line: note.why for note in (*one.left, *one.notes)}
        lines = [
            {"line": number, "kind": line.kind.value, "text": line.text, "why": said.get(number, "")}
            for number, line in enumerate(one.lines, 1)
        ]
        action = "rewritten" if changes else "left" if one.left else "nothing"
        click.echo(json.dumps({"file": one.path, "action": action, "lines": lines}))

    def _text(self, one: Decision, changes: bool) -> None:
        if self._verbose:
            for number, line in enumerate(one.lines, 1):
                click.echo(f"{one.path}:{number}: {line.kind.value}: {line.text}")
        for trouble in one.left:
            click.echo(f"{one.path}:{trouble.line}: left: {trouble.why}\n    {one.lines[trouble.line - 1].text}")
        for note in one.notes:
            if note.why != "rewritten":
                click.echo(f"{one.path}:{note.line}: {note.why}\n    {one.lines[note.line - 1].text}")
        if self._dry_run and changes:
            old, new = (text.decode("utf-8", "backslashreplace").splitlines() for text in (one.before, one.after))
            click.echo("\n".join(difflib.unified_diff(old, new, f"{one.path}", f"{one.path}", n=9, lineterm="")))

    def end(self, backup: str, command: str) -> None:
        """The summary, and what to do next."""
        kinds = dict(self._kinds.most_common())
        if self._as_json:
            summary = {"files": self.files, "rewritten": self.changed, "left": self.left, "failed": self.errors}
            click.echo(json.dumps({**summary, "dry-run": self._dry_run, "backup": backup, "lines": kinds}))
            return
        would = "would be " if self._dry_run else ""
        lines = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "no lines"
        click.echo(f"{counted(self.files, 'file')}: {lines}")
        removed = counted(self.removed, "second delivery", "second deliveries")
        click.echo(
            f"{self.changed} {would}rewritten"
            + (f" ({self.stopping} with --stop-after-spam)" if self.stopping else "")
            + (f", {removed} {would}removed" if self.removed else "")
            + f"; {self.left} left, see above; {self.errors} failed"
        )
        if backup:
            click.echo(f"The old files are kept in {backup}; the way back: deliver adopt --undo {backup}")
        if self.changed:
            click.echo(
                "qmailadmin knows its spam box by the command it was built with. In the same minute, build it with\n"
                f"    --enable-modify-spam --enable-spam-command='|{command}'\n"
                "(Mail::Toaster: qmailadmin_spam_command in toaster-watcher.conf); else the box shows as not ticked,\n"
                "and a new tick adds a second delivery."
            )


def _undo(directory: str, dry_run: bool, as_json: bool) -> None:
    try:
        path, entries = work.read_journal(directory)
    except FileNotFoundError as error:
        parent = os.path.dirname(work.default_backup())
        raise click.ClickException(f"{directory} keeps no old files; look below {parent}") from error
    restored = errors = 0
    with work.Root(path) as tree, bar(len(entries), "restoring") as progress:
        results = itertools.repeat(None, len(entries)) if dry_run else work.undo(tree, entries)
        for entry, failed in zip(entries, results, strict=True):
            errors += bool(failed)
            restored += not failed
            if failed and as_json:
                click.echo(json.dumps({"file": failed.path, "action": "failed", "why": failed.why}))
            elif failed:
                click.echo(f"{failed.path}: {failed.why}", err=True)
            elif as_json:
                click.echo(json.dumps({"file": entry.path, "action": "restored"}))
            progress.update(1)
    if not as_json:
        would = "would be " if dry_run else ""
        click.echo(f"{counted(restored, 'file')} {would}as {'it was' if restored == 1 else 'they were'}; {errors} left")
    raise SystemExit(1 if errors else 0)
