"""What lies in a tree of mailboxes: .qmail files, Maildirs and their messages. No symbolic link is ever followed."""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deliver.admin.qmailfile import open_directory


class Found(NamedTuple):
    """``kind`` is "qmail", "link" (a .qmail file that is a symbolic link), "maildir" or "failed", which says ``why``.

    ``path`` is relative to the tree's top.
    """

    kind: str
    path: str
    why: str = ""


def walk(top: int) -> Iterator[Found]:
    """Everything below the open directory ``top``, in order; itself, if it is a Maildir, as "". Not inside Maildirs."""
    yield from _walk(open_directory("", top), "")


def _walk(directory: int, path: str) -> Iterator[Found]:
    """``directory`` is closed here; ``path`` ends in "/", or is "" at the top."""
    try:
        try:
            with os.scandir(directory) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            yield Found("failed", path, str(error.strerror))
            return
        is_maildir = {"cur", "new", "tmp"} <= {entry.name for entry in entries}
        if is_maildir:  # a home may be one itself, with .qmail files in it
            yield Found("maildir", path.rstrip("/"))
        for entry in entries:
            below = f"{path}{entry.name}"
            if entry.name.startswith(".qmail"):
                if entry.is_symlink():
                    yield Found("link", below, "is a symbolic link, which is not followed")
                elif entry.is_file(follow_symlinks=False):
                    yield Found("qmail", below)
            elif entry.is_dir(follow_symlinks=False) and not is_maildir:
                if entry.name == "Maildir":  # no need to read what may be large
                    yield Found("maildir", below)
                    continue
                try:
                    descriptor = open_directory(entry.name, directory)
                except OSError as error:
                    yield Found("failed", below, str(error.strerror))
                    continue
                yield from _walk(descriptor, f"{below}/")
    finally:
        os.close(directory)


def is_read(name: str) -> bool:
    """maildir(5): the flag S. What lies in cur without it was seen by a program, but not by a person."""
    return "S" in name.partition(":2,")[2]


def messages(maildir: int, folder: str) -> Iterator[tuple[int, str, os.stat_result]]:
    """Every message of a folder ("" is the inbox) with the open directory that it lies in."""
    try:
        home = open_directory(folder, maildir)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:  # a symbolic link (ELOOP) is no folder of ours
        return
    try:
        for part in ("cur", "new"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                directory = open_directory(part, home)
                try:
                    yield from _files(directory)
                finally:
                    os.close(directory)
    finally:
        os.close(home)


def _files(directory: int) -> Iterator[tuple[int, str, os.stat_result]]:
    for name in os.listdir(directory):
        if name.startswith("."):
            continue
        try:
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(state.st_mode):
            yield directory, name, state


@contextlib.contextmanager
def as_owner(state: os.stat_result) -> Iterator[None]:
    """Work with the owner's rights, where we are root: what is made is the owner's, and a planted link leads nowhere.

    What is root's own nobody else has planted. Another user than root goes on as it is.
    """
    if os.geteuid() != 0 or state.st_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.setegid(state.st_gid)
        os.seteuid(state.st_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
