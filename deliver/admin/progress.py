"""Progress bars, for the commands that may take long."""

import sys
from typing import Any

import click


def bar(length: int, label: str) -> Any:
    """A progress bar on a terminal, where it takes long enough to be worth one."""
    hidden = length < 100 or not sys.stderr.isatty()
    return click.progressbar(length=length, label=label, file=sys.stderr, hidden=hidden)
