"""`make demo`: the main job, seen, with real scanners."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import main_job
import servers
from installed import make_install

COLUMNS = (22, 50, 24, 60, 4, 6)


def main() -> None:
    """Install, start clamd and spamd, deliver, show."""
    with servers.scratch() as directory:
        prefix = Path(tempfile.mkdtemp(prefix="deliver-demo-", dir="/tmp"))  # others must reach it
        prefix.chmod(0o755)
        try:
            print("installing the command ...", file=sys.stderr)
            make_install(prefix)
            print("starting clamd and spamd ...", file=sys.stderr)
            with servers.clamd(directory) as clamd, servers.spamd(directory) as spamd:
                _show(directory, prefix, clamd.address, spamd.address)
        finally:
            shutil.rmtree(prefix)
    print()
    print("The one line for .qmail:")
    print("|/usr/local/bin/deliver")


def _show(directory: Path, prefix: Path, clamd: str, spamd: str) -> None:
    home = directory / "home"
    home.mkdir()
    configuration = main_job.example_configuration(clamd, spamd, home / "log")
    place = main_job.Home(home, prefix, configuration)
    _row("message", "verdicts", "what happened", "why", "exit", "ms")
    print("  ".join("-" * width for width in COLUMNS))
    for case in main_job.cases():
        quota = place.maildir / "maildirsize"
        quota.unlink(missing_ok=True)
        if case.quota:
            quota.write_text(case.quota)
            main_job.own(home)
        environment = place.environment()
        on_top = case.on_top(environment)
        answer = place.deliver(on_top + case.message, environment=environment, stdin="pipe" if on_top else "file")
        said = place.logged()[-1]
        verdicts = ", ".join(f"{v['scanner']} {v['finding']}{_points(v)}" for v in said.get("verdicts", []))
        happened = ", ".join(said.get("actions", [])) or answer.stdout.decode().strip()
        why = said.get("reason") or said.get("detail", "")
        _row(case.name, verdicts, happened, why, str(answer.code), f"{answer.seconds * 1000:.0f}")
    (place.maildir / "maildirsize").unlink(missing_ok=True)
    print()
    print("Maildir/")
    print("\n".join(main_job.tree(place.maildir)))


def _points(verdict: dict[str, object]) -> str:
    return f" {verdict['score']}/{verdict['required']}" if "score" in verdict else ""


def _row(*cells: str) -> None:
    pairs = zip(cells, COLUMNS, strict=True)
    shown = [(cell if len(cell) <= width else f"{cell[: width - 1]}…").ljust(width) for cell, width in pairs]
    print("  ".join(shown).rstrip())
    sys.stdout.flush()


if __name__ == "__main__":
    os.umask(0o022)
    main()
