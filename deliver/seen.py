"""Which messages a mailbox got lately, by their Message-IDs: the file `seen` in Maildir/deliver/.

A line for each: when, in seconds since the epoch, and the ID's digest. Lines are appended in one write, so that
deliveries at the same time need no lock. A file that has grown long is written anew; a line that another delivery
appends meanwhile is lost, and costs at most one duplicate that is not recognised.
"""

import contextlib
import errno
import hashlib
import os
import stat

KEEP = 30 * 86400.0
"""Seconds for which an ID is remembered."""

FILE_CAP = 1024 * 1024
"""Bytes of the file, 23,000 messages; beyond it the older half goes."""

_LINE = 44  # ten digits, a blank, 32 of the digest, a newline
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Seen:
    """The memory of one Maildir. Nothing is opened before the first question."""

    def __init__(self, maildir: str) -> None:
        self._maildir = maildir

    def last(self, message_id: str) -> float | None:
        """When a message of that ID came last, in seconds since the epoch; None for never, or if nobody knows."""
        try:
            with contextlib.ExitStack() as stack:
                directory = self._open(stack)
                content = _content(directory)
        except OSError:
            return None
        at = content.rfind(b" " + _digest(message_id) + b"\n")
        if at < 10:
            return None
        with contextlib.suppress(ValueError):
            return float(content[at - 10 : at])
        return None

    def remember(self, message_id: str, now: float) -> None:
        """A message of that ID has come. Raises OSError."""
        with contextlib.ExitStack() as stack:
            try:
                directory = self._open(stack)
            except FileNotFoundError:
                self._make(stack)
                directory = self._open(stack)
            line = b"%010d %s\n" % (min(max(int(now), 0), 9_999_999_999), _digest(message_id))
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open("seen", flags, 0o600, dir_fd=directory)
            try:
                state = os.fstat(fd)
                if not stat.S_ISREG(state.st_mode):
                    raise OSError(errno.EINVAL, "is not a regular file", "seen")
                os.write(fd, line)
            finally:
                os.close(fd)
            if state.st_size + _LINE > FILE_CAP:
                _shorten(directory, now)

    def _open(self, stack: contextlib.ExitStack) -> int:
        maildir = os.open(self._maildir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, maildir)
        directory = os.open("deliver", _DIRECTORY, dir_fd=maildir)
        stack.callback(os.close, directory)
        return directory

    def _make(self, stack: contextlib.ExitStack) -> None:
        maildir = os.open(self._maildir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, maildir)
        with contextlib.suppress(FileExistsError):
            os.mkdir("deliver", 0o700, dir_fd=maildir)


def _content(directory: int) -> bytes:
    fd = os.open("seen", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            return b""
        return os.pread(fd, FILE_CAP, max(state.st_size - FILE_CAP, 0))
    finally:
        os.close(fd)


def _shorten(directory: int, now: float) -> None:
    """Keep the newer half of the lines, and of these what is not too old."""
    lines = _content(directory).split(b"\n")[-(FILE_CAP // _LINE // 2) :]
    oldest = b"%010d" % max(int(now - KEEP), 0)
    kept = b"".join(line + b"\n" for line in lines if len(line) == _LINE - 1 and line >= oldest)
    name = f"seen.{os.getpid()}.{os.urandom(6).hex()}"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        view = memoryview(kept)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(name, "seen", src_dir_fd=directory, dst_dir_fd=directory)


def _digest(message_id: str) -> bytes:
    digest = hashlib.sha256(message_id.encode("utf-8", "surrogateescape")).hexdigest()
    return digest[: _LINE - 12].encode("ascii")
