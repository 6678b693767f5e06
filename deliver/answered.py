"""Who got an automatic reply and when: Maildir/deliver/answered, a line "SECONDS KEY" for each.

The file is locked (flock(2)) while a reply goes out, so that twenty deliveries at once send one. What is wrong with the
file, or with the lock, costs replies and nothing else.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable

MOST_A_DAY = 200
"""Replies from one mailbox in 24 hours: a storm under forged senders' names must not make us a part of it."""

KEPT = 90 * 86400
"""Seconds: the longest span in which a rule may answer a sender once."""

_DAY = 86400
_LARGEST = 1 << 20  # bytes: MOST_A_DAY for KEPT days have 0.8 MB
_LOCK_WAIT = 5.0  # seconds; whoever holds it sends a reply
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def why_not(maildir: int, key: str, every: float, now: float) -> str:
    """Why no reply goes out at ``now``: too early for this ``key``, or too many today; "" if one may.

    ``maildir`` is an open directory. Changes nothing. A file that cannot be read is a reason, too.
    """
    try:
        with contextlib.ExitStack() as stack:
            directory = os.open("deliver", _DIRECTORY, dir_fd=maildir)
            stack.callback(os.close, directory)
            file = os.open("answered", os.O_RDONLY | _FILE, dir_fd=directory)
            stack.callback(os.close, file)
            return _too_soon(_entries(_read(file, maildir)), key, every, now)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"deliver/answered: {error.strerror or error}"


def once(maildir: int, key: str, every: float, now: float, send: Callable[[], object]) -> str:
    """Call ``send`` if why_not has nothing against it, and remember that; why not, "" where it was sent.

    What ``send`` raises passes through, and nothing is remembered. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        directory = _directory(maildir)
        stack.callback(os.close, directory)
        file = os.open("answered", os.O_RDWR | os.O_CREAT | _FILE, 0o600, dir_fd=directory)
        stack.callback(os.close, file)
        _lock(file)
        data = _read(file, maildir)
        entries = _entries(data)
        if why := _too_soon(entries, key, every, now):
            return why
        size = _write(file, data, entries, now)
        # Written first, so that a full disk stops replies, not the memory of them; taken back if none went out.
        line = f"{now:.0f} {key}\n".encode()
        try:
            _append(file, line, size)
            send()
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(file, size)
            raise
        os.fsync(directory)
    return ""


def _too_soon(entries: list[tuple[float, str]], key: str, every: float, now: float) -> str:
    # A clock that was set back makes entries of the future; they count as long as others do.
    if any(mine == key and abs(now - when) < every for when, mine in entries):
        return "this sender has been answered already"
    if sum(abs(now - when) < _DAY for when, _ in entries) >= MOST_A_DAY:
        return f"{MOST_A_DAY} replies have gone out within a day"
    return ""


def _entries(data: bytes) -> list[tuple[float, str]]:
    found = []
    for line in data.decode("ascii", "replace").split("\n"):
        when, _, key = line.partition(" ")
        if when.isascii() and when.isdigit() and len(when) <= 12:  # anything else a crash or a person has left
            found.append((float(when), key))
    return found


def _read(file: int, maildir: int) -> bytes:
    found = os.fstat(file)
    owners = {os.geteuid(), os.fstat(maildir).st_uid}
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid not in owners:
        raise OSError(errno.EPERM, "is not a plain file of this user")
    if found.st_size > _LARGEST:
        raise OSError(errno.EFBIG, "is over 1 MiB")
    data = b""
    while chunk := os.pread(file, _LARGEST, len(data)):
        data += chunk
    return data


def _write(file: int, data: bytes, entries: list[tuple[float, str]], now: float) -> int:
    """Leave out what no rule asks for any more, once that is half of the file; the file's size then.

    In place: what a power cut spoils here is at worst a second reply.
    """
    kept = [(when, key) for when, key in entries if abs(now - when) < KEPT]
    if len(kept) > len(entries) // 2 and data.endswith(b"\n"):
        return len(data)
    text = "".join(f"{when:.0f} {key}\n" for when, key in kept).encode()
    _append(file, text, 0)
    os.ftruncate(file, len(text))
    return len(text)


def _append(file: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(file, data, at)
        at += written
        data = data[written:]
    os.fsync(file)


def _lock(file: int) -> None:
    until = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _directory(maildir: int) -> int:
    try:
        return os.open("deliver", _DIRECTORY, dir_fd=maildir)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir("deliver", 0o700, dir_fd=maildir)
        os.fsync(maildir)
        return os.open("deliver", _DIRECTORY, dir_fd=maildir)
