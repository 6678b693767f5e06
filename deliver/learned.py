"""What spamd was told of one mailbox's messages: the file `learned` in Maildir/deliver/.

A line for each, "spam DIGEST" or "ham DIGEST"; of two for the same message the later counts. A line "upto NANOSECONDS"
says that all messages which have not changed since then were looked at. What a crash leaves out is told once more, and
spamd does not learn the same again.
"""

import contextlib
import errno
import fcntl
import os
import stat
from typing import Self

FILE_CAP = 1024 * 1024
"""Bytes of the file, 14,000 messages that somebody moved; beyond it the older half goes."""

_FILE = "learned"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Learned:
    """The memory of an open Maildir, a context manager; while it is open nobody else's is (flock(2)).

    ``upto`` is in nanoseconds since the epoch. Raises OSError, BlockingIOError where another has it open. With
    ``dry_run`` nothing is made or written.
    """

    def __init__(self, maildir: int, *, dry_run: bool = False) -> None:
        self.upto = 0
        self._said: dict[str, str] = {}
        self._directory = -1
        self._file = -1
        self._size = 0
        self._dry_run = dry_run
        try:
            self._open(maildir)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __bool__(self) -> bool:
        """Whether spamd was ever told anything."""
        return bool(self._said)

    def get(self, digest: str) -> str:
        """What was told last of a message: "spam", "ham", or "" for nothing."""
        return self._said.get(digest, "")

    def remember(self, digest: str, kind: str) -> None:
        """spamd was told that a message is "spam" or "ham". Raises OSError."""
        self._said.pop(digest, None)  # so that the newest stand last
        self._said[digest] = kind
        self._append(f"{kind} {digest}\n")

    def settle(self, upto: int) -> None:
        """All messages older than ``upto`` were looked at; what was said so far is durable now. Raises OSError."""
        if self._dry_run:
            return
        self.upto = upto
        self._append(f"upto {upto}\n")
        os.fsync(self._file)
        if self._size > FILE_CAP:
            self._shorten()

    def close(self) -> None:
        """Let others have it."""
        for fd in (self._file, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._directory = -1

    def _open(self, maildir: int) -> None:
        try:
            self._directory = os.open("deliver", _DIRECTORY, dir_fd=maildir)
        except FileNotFoundError:
            if self._dry_run:
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir("deliver", 0o700, dir_fd=maildir)
            os.fsync(maildir)
            self._directory = os.open("deliver", _DIRECTORY, dir_fd=maildir)
        fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        flags = os.O_RDONLY if self._dry_run else os.O_RDWR | os.O_CREAT | os.O_APPEND
        with contextlib.suppress(FileNotFoundError):
            self._file = os.open(_FILE, flags | _PLAIN, 0o600, dir_fd=self._directory)
            self._read()

    def _read(self) -> None:
        state = os.fstat(self._file)
        if not stat.S_ISREG(state.st_mode) or state.st_size > 2 * FILE_CAP:
            raise OSError(errno.EINVAL, "is not a file of ours; remove it", f"deliver/{_FILE}")
        data = b""
        while chunk := os.pread(self._file, FILE_CAP, len(data)):
            data += chunk
        self._size = len(data)
        for line in data.decode("ascii", "replace").split("\n"):
            word, _, value = line.partition(" ")
            if word in ("spam", "ham"):
                self._said.pop(value, None)
                self._said[value] = word
            elif word == "upto" and value.isascii() and value.isdigit() and len(value) < 20:  # else a crash left it
                self.upto = int(value)
        if data and not data.endswith(b"\n") and not self._dry_run:
            self._append("\n")

    def _append(self, line: str) -> None:
        if self._dry_run:
            return
        data = line.encode("ascii")
        if os.write(self._file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"deliver/{_FILE}")
        self._size += len(data)

    def _shorten(self) -> None:
        kept = list(self._said.items())[len(self._said) // 2 :]
        text = "".join(f"{kind} {digest}\n" for digest, kind in kept) + f"upto {self.upto}\n"
        new = f"{_FILE}.new"  # one at a time has the lock
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _PLAIN
        fd = os.open(new, flags, 0o600, dir_fd=self._directory)
        os.close(self._file)
        self._file, self._size, self._said = fd, 0, dict(kept)
        self._append(text)
        os.fsync(fd)
        os.rename(new, _FILE, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        os.fsync(self._directory)
