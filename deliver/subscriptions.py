"""Subscribe to a folder that was made by a delivery, so that mail clients show it.

Courier keeps the list in Maildir/courierimapsubscribed: one "INBOX.Folder" a line, replaced by rename, without a lock.
Dovecot keeps it in Maildir/subscriptions: a first line "V<TAB>2", an empty line, then one folder a line with TAB
between its levels (version 2), or no header and dots (version 1, Dovecot 2.2 and older); replaced by renaming its lock
over it. The formats are those of subscribe() in Courier's imapd.c and of Dovecot's subscription-file.c and
file-dotlock.c.
"""

import contextlib
import errno
import os
import stat
import time
from typing import NamedTuple

COURIER = "courierimapsubscribed"
DOVECOT = "subscriptions"
_LOCK = "subscriptions.lock"

_DOVECOT_2 = b"V\t2\n\n"
_LARGEST = 1 << 20  # bytes; a list of that length was not made by an IMAP server
_LOCK_WAIT = 5.0  # seconds; Dovecot itself would wait for 120
_ABANDONED = 30.0  # seconds after which Dovecot, too, takes a lock for one of a process that died
_SETTLED = 0.05  # seconds; imapd takes some 0.2 ms from reading the list to renaming it
_TRIES = 3
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _List(NamedTuple):
    """One of the two files as it was read."""

    data: bytes
    found: os.stat_result


def subscribe(maildir_fd: int, folder: str) -> str:
    """Add a folder (a name without its leading dot: "Lists.qmail") to the subscriptions of both IMAP servers.

    Where only one of them keeps a list, only that is changed; where none does, both are made. What is not a plain file
    of ours, or over 1 MiB, is left alone. Never raises; says what went wrong, "" for nothing.
    """
    problems = []
    if not folder.isprintable():
        return f"subscriptions: {folder!r} cannot be a line"
    try:
        present = [name for name in (COURIER, DOVECOT) if _exists(maildir_fd, name)]
        if present == [COURIER] and _is_half_made(maildir_fd, folder):
            present = []
    except OSError as error:
        return f"subscriptions: {error}"
    for name, update in ((COURIER, _update_courier), (DOVECOT, _update_dovecot)):
        if name in present or not present:
            try:
                update(maildir_fd, folder)
            except Exception as error:
                problems.append(f"{name}: {error}")
    return "; ".join(problems)


def _is_half_made(maildir_fd: int, folder: str) -> bool:
    """Whether a delivery of ours died between making Courier's list and making Dovecot's."""
    with contextlib.suppress(OSError):  # what is not a plain file is not ours either
        old = _read(maildir_fd, COURIER)
        return old is not None and old.data == _courier_line(folder) + b"\n"
    return False


def _courier_line(folder: str) -> bytes:
    return (folder if folder.upper() == "INBOX" else f"INBOX.{folder}").encode()


def _update_courier(maildir_fd: int, folder: str) -> None:
    """Add the line; again where imapd replaced the file at the same time, since neither side has a lock."""
    line = _courier_line(folder)
    for _ in range(_TRIES):
        old = _read(maildir_fd, COURIER)
        new = _with_line(old.data if old else b"", line, b"")
        if new is None:
            return
        _replace_courier(maildir_fd, old, new)
        if old:
            time.sleep(_SETTLED)  # an imapd that had read the old list by then puts its own over ours until here
    now = _read(maildir_fd, COURIER)
    if now is None or line not in now.data.split(b"\n"):
        raise BlockingIOError(errno.EAGAIN, "is being changed by others all the time")


def _replace_courier(maildir_fd: int, old: _List | None, new: bytes) -> None:
    """Rename a new file over the old one, if that is still the same."""
    tmp = os.open("tmp", os.O_RDONLY | os.O_DIRECTORY | _SAFELY, dir_fd=maildir_fd)
    name = f"{int(time.time())}.P{os.getpid()}R{os.urandom(8).hex()}.{COURIER}"
    try:
        descriptor = _create(tmp, name)
        try:
            _write(descriptor, new, old)
            if _identity(old) == _identity(_read(maildir_fd, COURIER)):
                os.rename(name, COURIER, src_dir_fd=tmp, dst_dir_fd=maildir_fd)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=tmp)
            os.close(descriptor)
    finally:
        os.close(tmp)


def _update_dovecot(maildir_fd: int, folder: str) -> None:
    if _dovecot_text(_read(maildir_fd, DOVECOT), folder) is None:
        return
    lock = _dovecot_lock(maildir_fd)
    try:
        old = _read(maildir_fd, DOVECOT)
        new = _dovecot_text(old, folder)
        if new is not None:
            _write(lock, new, old)
            if not _is_still(maildir_fd, _LOCK, lock):
                raise BlockingIOError(errno.EAGAIN, "the lock was taken away")
            os.rename(_LOCK, DOVECOT, src_dir_fd=maildir_fd, dst_dir_fd=maildir_fd)
            os.fsync(maildir_fd)
    finally:
        with contextlib.suppress(OSError):
            if _is_still(maildir_fd, _LOCK, lock):
                os.unlink(_LOCK, dir_fd=maildir_fd)
        os.close(lock)


def _dovecot_text(old: _List | None, folder: str) -> bytes | None:
    """Compose the new text, None if nothing is missing. A file keeps its version; an empty one has version 1."""
    data = old.data if old else _DOVECOT_2
    flat = folder.encode()
    if data.startswith(_DOVECOT_2):
        return _with_line(data, flat.replace(b".", b"\t"), flat)  # Dovecot reads a dotted name there too
    return _with_line(data, flat, b"")


def _with_line(data: bytes, line: bytes, same: bytes) -> bytes | None:
    """Append a line unless it or ``same`` is there. A last line without LF is ended first: Dovecot drops it else."""
    *lines, rest = data.split(b"\n")
    if line in lines or (same and same in lines):
        return None
    if rest == line:
        return data + b"\n"
    return data + (b"\n" if rest else b"") + line + b"\n"


def _exists(maildir_fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=maildir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _read(maildir_fd: int, name: str) -> _List | None:
    """Read a plain file of ours; None where there is none, OSError where it is to be left alone."""
    try:
        descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=maildir_fd)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        owners = {os.geteuid(), os.fstat(maildir_fd).st_uid}
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid not in owners:
            raise OSError(errno.EPERM, "is not a plain file of this user")
        data = b""
        while len(data) <= _LARGEST and (chunk := os.read(descriptor, _LARGEST)):
            data += chunk
    finally:
        os.close(descriptor)
    if len(data) > _LARGEST:
        raise OSError(errno.EFBIG, "is over 1 MiB")
    return _List(data, found)


def _identity(file: _List | None) -> tuple[int, int, bytes] | None:
    return file and (file.found.st_dev, file.found.st_ino, file.data)


def _create(directory: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=directory)


def _write(descriptor: int, data: bytes, old: _List | None) -> None:
    """Write and sync; mode and, where allowed, owner are those of the old file."""
    if old:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, old.found.st_uid, old.found.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(old.found.st_mode) & 0o666)
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _dovecot_lock(maildir_fd: int) -> int:
    """Take Dovecot's lock, a file that must not exist yet; its content becomes the new list."""
    until = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            return _create(maildir_fd, _LOCK)
        except FileExistsError:
            if time.monotonic() > until:
                raise
            with contextlib.suppress(OSError):
                if time.time() - os.stat(_LOCK, dir_fd=maildir_fd, follow_symlinks=False).st_ctime > _ABANDONED:
                    os.unlink(_LOCK, dir_fd=maildir_fd)
                    continue
            time.sleep(0.05)


def _is_still(maildir_fd: int, name: str, descriptor: int) -> bool:
    """Whether the lock is ours: whoever takes it for abandoned removes it."""
    ours = os.fstat(descriptor)
    there = os.stat(name, dir_fd=maildir_fd, follow_symlinks=False)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
