"""Files of addresses and domains that the site names in [lists], for rules to look senders up in.

One address or domain a line, in any case; `#` begins a comment. A path that is a bare name lies beside each Maildir,
and its owner keeps it: such a file is taken only if nobody else could have written it, and no link is followed to it.
"""

import os
import stat
import time
from collections.abc import Container
from typing import NamedTuple

from deliver.errors import Deferred, NotConfigured
from deliver.message import is_passing
from deliver.rules.model import CannotTell

SITE_CAP = 64 * 1024 * 1024
"""Bytes of a site's list: two million addresses."""

USER_CAP = 8 * 1024 * 1024
"""Bytes of a list beside a Maildir: 250,000 addresses."""

KEPT = 1000
"""Lists that a process keeps in memory, at most ENTRIES_KEPT entries in all."""

ENTRIES_KEPT = 2_000_000

FRESH = 2.0
"""Seconds in which a file may change once more without its times telling (the kernel's clock ticks in ms)."""

_Identity = tuple[int, ...]


class _Kept(NamedTuple):
    identity: _Identity
    entries: frozenset[str]


class Lists:
    """The lists of a site, read when a rule asks and kept as long as they are the same files. For any thread."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._kept: dict[str, _Kept] = {}

    def entries(self, name: str, beside: str, uid: int) -> Container[str]:
        """The entries of the list ``name``, in lower case; ``beside`` is the directory that holds the Maildir.

        A list beside a Maildir that does not exist is empty. Raises CannotTell for one that must not be used or cannot
        be read, NotConfigured where the site's own is like that, Deferred for an error of the system that may pass.
        """
        path = self._paths.get(name)
        if path is None:
            raise CannotTell(f"the site has no list {name}")
        own = "/" not in path
        try:
            return self._read(os.path.join(beside, path) if own else path, uid if own else None)
        except FileNotFoundError as error:
            if own:
                return frozenset()
            raise NotConfigured(f"[lists] {name}: {path}: there is no such file") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and is_passing(error):
                raise Deferred(f"[lists] {name}: {path}: {error.strerror}") from error
            words = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
            if own:
                raise CannotTell(f"the list {name} cannot be used: {path} {words}") from error
            raise NotConfigured(f"[lists] {name}: {path}: {words}") from error

    def _read(self, path: str, uid: int | None) -> frozenset[str]:
        follow = os.O_NOFOLLOW if uid is not None else 0
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
        try:
            state = os.fstat(fd)
            if wrong := _distrust(state, uid):
                raise ValueError(wrong)
            identity = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size)
            kept = self._kept.get(path)
            if kept is not None and kept.identity == identity:
                return kept.entries
            with open(fd, "rb", closefd=False) as file:
                entries = parse(file.read(state.st_size))
        finally:
            os.close(fd)
        if time.time() - state.st_ctime > FRESH:
            if len(self._kept) >= KEPT or sum(len(one.entries) for one in self._kept.values()) > ENTRIES_KEPT:
                self._kept.clear()
            self._kept[path] = _Kept(identity, entries)
        return entries


def parse(content: bytes) -> frozenset[str]:
    """The entries in a list's file: "user@example.org" and "example.org", which may also be written "@example.org" and
    "*@example.org".
    """
    entries = set()
    # utf-8-sig: editors put a mark before the first line.
    for line in content.decode("utf-8-sig", "replace").lower().split("\n"):
        entry = line.partition("#")[0].strip() if "#" in line else line.strip()
        if entry:
            entries.add(entry.removeprefix("*").removeprefix("@"))
    return frozenset(entries)


def _distrust(state: os.stat_result, uid: int | None) -> str:
    """Why a file must not be used; ``uid`` is the mailbox's owner where the file is the owner's."""
    if not stat.S_ISREG(state.st_mode):
        return "is not a regular file"
    if uid is not None and state.st_uid not in (0, uid):
        return "does not belong to the mailbox's owner"
    if uid is not None and state.st_mode & 0o022:
        return "is writable by others; chmod go-w"
    cap = SITE_CAP if uid is None else USER_CAP
    return f"is larger than {cap // 1024 // 1024} MiB" if state.st_size > cap else ""
