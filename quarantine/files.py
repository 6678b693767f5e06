"""A quarantine of plain files, which no crash can empty and a person can read without us.

    messages/DIGEST     a message, once however many recipients it was held for, 0600
    held/ID.json        one recipient's envelope: why, when, for whom, where it was going; 0600
    tmp/                what is being written

To release by hand: copy messages/DIGEST into the `new` directory of the Maildir that held/ID.json names.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable

from quarantine.store import Held

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Files:
    """A quarantine under ``base``, a directory that exists, in ``relative``, which is made on first use.

    No symbolic link is followed below ``base``: its owner may be a stranger to the process.
    """

    def __init__(self, base: str, relative: str) -> None:
        self._base = base
        self._relative = relative

    @property
    def path(self) -> str:
        """Where it is."""
        return os.path.join(self._base, self._relative)

    def prepare(self, held: Held, chunks: Iterable[bytes]) -> "PendingFile":
        """Write the message and its envelope to tmp/, synced. Raises OSError, leaving nothing behind."""
        with contextlib.ExitStack() as stack:
            root = _beneath(self._base, self._relative, stack)
            directories = {name: _child(root, name) for name in ("tmp", "messages", "held")}
            pending = PendingFile(directories)
            try:
                pending.write(held, chunks)
            except BaseException:
                pending.abort()
                raise
        return pending


class PendingFile:
    """A held message in the making; ``commit`` makes it held, ``abort`` forgets it."""

    def __init__(self, directories: dict[str, int]) -> None:
        self._fds = directories
        self._held: Held | None = None
        self._unique = f"{int(time.time())}.{os.getpid()}.{os.urandom(6).hex()}"
        self._written: list[str] = []

    def write(self, held: Held, chunks: Iterable[bytes]) -> None:
        """Fill tmp/; raises OSError."""
        digest = hashlib.sha256()
        size = 0
        fd = self._create("eml")
        try:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                _write_all(fd, chunk)
            _sync(fd, size)
        finally:
            os.close(fd)
        body = self._body(digest.hexdigest(), size)
        self._held = held._replace(id=self._unique, size=size, digest=digest.hexdigest(), body=f"messages/{body}")
        text = json.dumps(self._held._asdict(), indent=1).encode() + b"\n"
        fd = self._create("json")
        try:
            _write_all(fd, text)
            _sync(fd, len(text))
        finally:
            os.close(fd)

    def commit(self) -> Held:
        """The message first, then its envelope, each durable before the next."""
        if self._held is None:
            raise ValueError("nothing was written")
        tmp, messages, held = self._fds["tmp"], self._fds["messages"], self._fds["held"]
        with contextlib.suppress(FileExistsError):  # the same message, held for another recipient
            os.link(f"{self._unique}.eml", os.path.basename(self._held.body), src_dir_fd=tmp, dst_dir_fd=messages)
        os.fsync(messages)
        os.link(f"{self._unique}.json", f"{self._unique}.json", src_dir_fd=tmp, dst_dir_fd=held)
        os.fsync(held)
        self.abort()
        return self._held

    def abort(self) -> None:
        """Remove what is in tmp/; never raises."""
        for name in self._written:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._fds["tmp"])
        self._written = []
        for fd in self._fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds = {}

    def _create(self, suffix: str) -> int:
        name = f"{self._unique}.{suffix}"
        fd = os.open(name, _NEW, 0o600, dir_fd=self._fds["tmp"])
        self._written.append(name)
        return fd

    def _body(self, digest: str, size: int) -> str:
        """The name for the message: its digest, unless something else of that name cannot be trusted to be it."""
        try:
            state = os.stat(digest, dir_fd=self._fds["messages"], follow_symlinks=False)
        except FileNotFoundError:
            return digest
        ours = stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and state.st_size == size
        return digest if ours else f"{digest}.{self._unique}"


def _beneath(base: str, relative: str, stack: contextlib.ExitStack) -> int:
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    for name in relative.split("/"):
        if name in ("", "."):
            continue
        if name == "..":
            raise OSError(errno.EINVAL, "a quarantine directory must not contain ..")
        fd = _child(fd, name)
        stack.callback(os.close, fd)
    return fd


def _child(parent: int, name: str) -> int:
    """Open a directory, made and synced into its parent if need be."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        os.fsync(parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync(fd: int, size: int) -> None:
    os.fsync(fd)
    written = os.fstat(fd).st_size
    if written != size:
        raise OSError(errno.EIO, f"{written} of {size} bytes were stored")
