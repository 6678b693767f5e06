"""Old mail leaves the inbox, Sent, Trash and the spam folder, and the quota file is right again.

Messages are deleted one by one through open directories, with the rights of the Maildir's owner and through no symbolic
link. What is killed half-way has deleted a part; the quota file then says too much until the next count.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from deliver import quota
from deliver.admin.qmailfile import open_directory
from deliver.admin.tree import as_owner, is_read, messages
from deliver.admin.whose import layered, spared
from deliver.errors import DeliverError
from deliver.rules.model import is_inbox
from deliver.settings import Config, Expire

CLASSES = ("read", "unread", "sent", "trash", "spam")


class Tally(NamedTuple):
    """How many messages of a class, and their bytes."""

    messages: int = 0
    size: int = 0


class Result(NamedTuple):
    """What was (or would be) deleted from one Maildir, by class; ``why`` says what went wrong, "" for nothing."""

    maildir: str
    deleted: dict[str, Tally]
    why: str = ""
    spared: bool = False


def expire(top: int, path: str, shown: str, config: Config, now: float, *, dry_run: bool = False) -> Result:
    """Delete what is old from the Maildir at ``path``, relative to the open directory ``top``.

    ``shown`` is its absolute path, for [expire] except; ``now`` in seconds since the epoch. Never raises OSError.
    """
    settings = config.expire or Expire()
    deleted: dict[str, Tally] = {}
    if spared(shown, settings.apart):
        return Result(shown, deleted, spared=True)
    maildir = -1
    try:
        maildir = open_directory(path, top)
        state = os.fstat(maildir)
        with as_owner(state):
            spam = layered(shown, config, state.st_uid).spam or config.spam
            _expire(maildir, settings, spam.folder, now, deleted, dry_run)
    except (OSError, DeliverError) as error:
        return Result(shown, deleted, getattr(error, "strerror", "") or str(error))
    finally:
        if maildir >= 0:
            os.close(maildir)
    return Result(shown, deleted)


def _expire(maildir: int, settings: Expire, spam: str, now: float, deleted: dict[str, Tally], dry_run: bool) -> None:
    folders = [("", "read", settings.read), ("", "unread", settings.unread), (".Sent", "sent", settings.sent)]
    folders.append((".Trash", "trash", settings.trash))
    if not is_inbox(spam):
        folders.append((f".{spam}", "spam", settings.spam))
    counted = False  # whether anything went that counts towards the quota
    try:
        for folder, kind, span in folders:
            for size in _old(maildir, folder, kind, now - span, dry_run) if span else ():
                before = deleted.get(kind, Tally())
                deleted[kind] = Tally(before.messages + 1, before.size + size)
                counted = counted or quota.counts(folder[1:])
    finally:  # also where a folder then cannot be read, or not be written to
        if counted and not dry_run:
            quota.recount(maildir)


def _old(maildir: int, folder: str, kind: str, before: float, dry_run: bool) -> Iterator[int]:
    """The sizes of a folder's messages of one kind that are as old as ``before``, each deleted."""
    for directory, name, state in messages(maildir, folder):
        if kind in ("read", "unread") and (kind == "read") != is_read(name):
            continue
        # In these two a message may be much younger than its arrival: moving it changes its ctime alone. Courier's
        # IMAP_EMPTYTRASH goes by it, too.
        since = state.st_ctime if kind in ("trash", "spam") else state.st_mtime
        if since > before:
            continue
        if not dry_run:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:  # the owner was faster
                continue
        yield state.st_size
