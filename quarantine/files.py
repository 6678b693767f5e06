"""A quarantine of plain files, which no crash can empty and a person can read without us.

    messages/DIGEST     a message, once however many recipients it was held for, 0600
    held/ID.json        one recipient's envelope: why, when, for whom, where it was going; 0600
    releasing/ID.json   the same, while it is being released or deleted: who has moved it there may go on
    released/ID.json    the same, after it was released
    tmp/                what is being written
    audit.log           who did what and when, a JSON object a line

A body and its envelope are linked, and envelopes moved, under a shared lock on the directory of the bodies; those
without an envelope are removed under an exclusive one: no body can go between being found there and being counted on,
and no envelope is overlooked because it was on its way.

To release by hand: copy messages/DIGEST into the `new` directory of the Maildir that held/ID.json names.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

from quarantine.store import Held, envelope

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 256 * 1024
_LARGEST_ENVELOPE = 16 * 1024 * 1024  # bytes
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# How file systems without hard links say so: FAT and CIFS EPERM, FUSE ENOSYS, others EOPNOTSUPP; EMLINK is too many.
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# How file systems that cannot sync a directory say so; anything else is a failure to be believed.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}


class Files:
    """A quarantine under ``base``, a directory that exists, in ``relative``, which is made on first use.

    No symbolic link is followed from ``base`` itself on: its owner may be a stranger to the process, and may swap it.
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
            root = _beneath(self._base, self._relative, stack, make=True)
            # Those for later as well: once the disk is full, mail could not be deleted for want of a directory.
            directories = {name: _child(root, name) for name in ("tmp", "messages", "held", "releasing", "released")}
            pending = PendingFile(directories)
            try:
                pending.write(held, chunks)
            except BaseException:
                pending.abort()
                raise
        return pending

    def ids(self, state: str = "held") -> list[str]:
        """The ids of all envelopes in a state ("held", "releasing", "released"), in no order; raises OSError."""
        with contextlib.ExitStack() as stack:
            directory = self._open(state, stack)
            return [name[:-5] for name in os.listdir(directory) if name.endswith(".json") and not name.startswith(".")]

    def read(self, id_: str, state: str = "held") -> Held:
        """One envelope. Raises KeyError where there is none, ValueError where it is damaged, OSError."""
        with contextlib.ExitStack() as stack:
            text = _read(self._open(state, stack), f"{_plain(id_)}.json")
        try:
            fields = json.loads(text)
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        return envelope(fields, id_)

    def chunks(self, held: Held) -> Iterator[bytes]:
        """The message of an envelope; raises KeyError where its file is gone, OSError."""
        with contextlib.ExitStack() as stack:
            directory = self._open("messages", stack)
            try:
                fd = os.open(_plain(os.path.basename(held.body)), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            except FileNotFoundError:
                raise KeyError(held.body) from None
            with open(fd, "rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

    def move(self, id_: str, before: str, after: str) -> None:
        """Take an envelope from one state to another, durably; KeyError where it is not there: somebody was quicker."""
        with contextlib.ExitStack() as stack:
            old, new = self._open(before, stack), self._open(after, stack)
            fcntl.flock(self._open("messages", stack), fcntl.LOCK_SH)
            name = f"{_plain(id_)}.json"
            try:
                os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)
            except FileNotFoundError:
                raise KeyError(id_) from None
            _sync_directory(new)
            _sync_directory(old)

    def moved(self, id_: str, state: str) -> float:
        """When an envelope came into a state, in seconds since the epoch; raises KeyError, OSError.

        A rename changes its ctime.
        """
        with contextlib.ExitStack() as stack:
            directory = self._open(state, stack)
            try:
                return os.stat(f"{_plain(id_)}.json", dir_fd=directory, follow_symlinks=False).st_ctime
            except FileNotFoundError:
                raise KeyError(id_) from None

    def forget(self, id_: str, state: str) -> None:
        """Remove an envelope; its message goes with `collect`. KeyError where there is none."""
        with contextlib.ExitStack() as stack:
            directory = self._open(state, stack)
            try:
                os.unlink(f"{_plain(id_)}.json", dir_fd=directory)
            except FileNotFoundError:
                raise KeyError(id_) from None
            _sync_directory(directory)

    def bodies(self) -> dict[str, float]:
        """The messages that are there, by their names in an envelope's ``body``, and their times of change."""
        with contextlib.ExitStack() as stack:
            directory = self._open("messages", stack)
            with os.scandir(directory) as entries:
                states = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
        return {f"messages/{name}": state.st_mtime for name, state in states.items() if stat.S_ISREG(state.st_mode)}

    def collect(self, referenced: Callable[[], set[str]], older_than: float = 0.0, *, remove: bool = True) -> list[str]:
        """Remove messages that no envelope names and that have not changed for ``older_than`` seconds; their names.

        ``referenced`` is asked while no envelope can be added or moved. Without ``remove`` they are only named.
        """
        with contextlib.ExitStack() as stack:
            directory = self._open("messages", stack)
            fcntl.flock(directory, fcntl.LOCK_EX)
            named = referenced()
            now = time.time()
            gone = [name for name, when in self.bodies().items() if name not in named and now - when >= older_than]
            for name in gone if remove else ():
                os.unlink(os.path.basename(name), dir_fd=directory)
            _sync_directory(directory)
        return gone

    def sweep(self, older_than: float) -> list[str]:
        """Remove what crashed writers left in tmp/; the names."""
        with contextlib.ExitStack() as stack:
            directory = self._open("tmp", stack)
            with os.scandir(directory) as entries:
                now = time.time()
                old = [one.name for one in entries if now - one.stat(follow_symlinks=False).st_mtime >= older_than]
            for name in old:
                with contextlib.suppress(FileNotFoundError):  # another `verify` was faster
                    os.unlink(name, dir_fd=directory)
        return old

    def note(self, **record: object) -> None:
        """Add a line to the audit log; raises OSError."""
        with contextlib.ExitStack() as stack:
            root = _beneath(self._base, self._relative, stack)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open("audit.log", flags, 0o600, dir_fd=root)
            try:
                # A line that a full disk or a crash has cut must not swallow this one.
                size = os.fstat(fd).st_size
                start = b"\n" if size and os.pread(fd, 1, size - 1) != b"\n" else b""
                _write_all(fd, start + json.dumps(record).encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)

    def _open(self, name: str, stack: contextlib.ExitStack) -> int:
        fd = _child(_beneath(self._base, self._relative, stack), name)
        stack.callback(_close, fd)
        return fd


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
        fcntl.flock(messages, fcntl.LOCK_SH)
        with contextlib.suppress(FileExistsError):  # the same message, held for another recipient
            _publish(f"{self._unique}.eml", tmp, os.path.basename(self._held.body), messages)
        _sync_directory(messages)
        _publish(f"{self._unique}.json", tmp, f"{self._unique}.json", held)
        _sync_directory(held)
        self.abort()
        return self._held

    def abort(self) -> None:
        """Remove what is in tmp/; never raises."""
        for name in self._written:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._fds["tmp"])
        self._written = []
        for fd in self._fds.values():
            _close(fd)
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


def _beneath(base: str, relative: str, stack: contextlib.ExitStack, *, make: bool = False) -> int:
    """Open the quarantine; only what holds a message may ``make`` it, with the rights of who delivers."""
    fd = os.open(base.rstrip("/") or "/", _DIRECTORY)  # with a slash behind it a symbolic link would be followed
    stack.callback(_close, fd)
    for name in relative.split("/"):
        if name in ("", "."):
            continue
        if name == "..":
            raise OSError(errno.EINVAL, "a quarantine directory must not contain ..")
        fd = _child(fd, name) if make else os.open(name, _DIRECTORY, dir_fd=fd)
        stack.callback(_close, fd)
    return fd


def _close(directory: int) -> None:
    """Nothing was written through a directory, so nothing is lost where this fails (NFS)."""
    with contextlib.suppress(OSError):
        os.close(directory)


def _child(parent: int, name: str) -> int:
    """Open a directory, made and synced into its parent if need be."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        _sync_directory(parent)
        return os.open(name, _DIRECTORY, dir_fd=parent)


def _publish(name: str, tmp: int, final: str, directory: int) -> None:
    """Give a file of tmp/ its final name. Where that is taken it is by the same: names are digests, or random.

    FileExistsError says so, if the file system has hard links.
    """
    try:
        os.link(name, final, src_dir_fd=tmp, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(name, final, src_dir_fd=tmp, dst_dir_fd=directory)


def _sync_directory(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _plain(name: str) -> str:
    """A file's name that leads nowhere else; KeyError for others."""
    if not name or "/" in name or name.startswith("."):
        raise KeyError(name)
    return name


def _read(directory: int, name: str) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise KeyError(name) from None
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST_ENVELOPE:
            raise ValueError("is no file of ours")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync(fd: int, size: int) -> None:
    os.fsync(fd)
    written = os.fstat(fd).st_size
    if written != size:
        raise OSError(errno.EIO, f"{written} of {size} bytes were stored")
