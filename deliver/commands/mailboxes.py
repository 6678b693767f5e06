"""Every mailbox at or below some paths, one after another, with a progress bar where there are many."""

import os
from collections.abc import Generator, Iterable

import click

from deliver import config
from deliver.admin import tree
from deliver.admin.progress import bar
from deliver.admin.qmailfile import open_directory
from deliver.errors import DeliverError
from deliver.settings import Config


def site(path: str) -> Config:
    """The site's configuration; a wrong one ends the command."""
    try:
        return config.load(config.find(path, os.environ.get("DELIVER_CONFIG", "")))
    except DeliverError as error:
        raise click.ClickException(error.detail) from error


def each(paths: Iterable[str], label: str) -> Generator[tuple[int, tree.Found, str]]:
    """For each Maildir, and each directory that could not be read: an open directory, what was found below it, and its
    path as people know it.
    """
    for path in map(os.path.realpath, paths):
        try:
            top = open_directory(path)
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror}") from error
        try:
            found = [one for one in tree.walk(top) if one.kind in ("maildir", "failed")]
            with bar(len(found), label) as progress:
                for one in found:
                    yield top, one, os.path.join(path, one.path) if one.path else path
                    progress.update(1)
        finally:
            os.close(top)
