"""Delivery into a Maildir, so that a power cut one instant after ``commit`` loses nothing.

A message is written to tmp/, synced, linked into new/ (or cur/, if it has flags), and the directory is synced:
maildir(5) and https://cr.yp.to/proto/maildir.html, plus the directory sync that most delivery agents leave out. A
folder is a directory ``.Name`` next to new/ (Maildir++). Every path is resolved against an open directory and never
through a symbolic link, because the Maildir's owner may move things while a more privileged process delivers.

All functions block; they may be called from any thread.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from deliver.errors import Deferred
from deliver.values import INBOX

INACCESSIBLE = "4.2.1 Mailbox is not accessible"  # as qmail-local words a Maildir it cannot enter
FULL = "4.3.1 Mail storage is full"
FAILED = "4.3.0 Mail storage failed"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS = ("new", "cur", "tmp")  # tmp is made last: Courier takes it for the sign of a complete folder
_TRIES = 10
_MARK = "maildirfolder"
# The mode of maildirfolder: what the folder's first delivery still has to do survives that delivery's end.
_UNKNOWN = 0o400
_INTRODUCED = 0o600

_STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What concerns one folder and will not pass by itself; the inbox may still work.
_FOLDER_TROUBLE = {
    errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.EMLINK
}  # fmt: skip
# How file systems without hard links say so: FAT and CIFS EPERM, FUSE ENOSYS, others EOPNOTSUPP.
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# How file systems that cannot sync a directory say so; anything else is a failure to be believed.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
# How file systems (and kernels) without O_TMPFILE say so: open(2).
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}

_serial = itertools.count(1)


class FolderUnusable(Exception):
    """A folder that cannot take mail: a file, a symbolic link, somebody else's, not accessible. Says which and why."""


class Prepared:
    """A message that lies complete and synced in tmp/, waiting for ``commit`` or ``abort``.

    ``size`` is the file's, in bytes. ``folder`` is the name given to ``prepare``; ``created`` says that the folder was
    made for this message, or for one that failed before ``Maildir.introduced`` was called. ``name`` is the message's
    path relative to the Maildir, "" until committed.
    """

    def __init__(self, where: str, folder: str, flags: str, home: int, *, created: bool) -> None:
        """Make the file in the folder's tmp/; ``home`` is the open folder and is closed here. Raises OSError."""
        self.folder = folder
        self.created = created
        self.size = 0
        self.name = ""
        self._directory = "" if folder.upper() == INBOX else f".{folder}/"
        self._part = "cur" if flags else "new"  # maildir(5): what lies in new/ has no info
        self._info = f":2,{flags}" if flags else ""
        self._where = f"{where}/{self._part}"
        self._identity = (0, 0)
        self._home = home
        self._open = [home]
        self._tmp_name = ""
        try:
            self._tmp = self._enter("tmp")
            self._target = self._enter(self._part)
            self._tmp_name, self._file = _create(self._tmp, os.O_WRONLY)
        except BaseException:
            self.abort()
            raise

    def _enter(self, part: str) -> int:
        descriptor = os.open(part, _DIRECTORY, dir_fd=self._home)
        self._open.append(descriptor)
        return descriptor

    def fill(self, chunks: Iterable[bytes]) -> None:
        """Write, sync and close the file, once. Raises Deferred; what ``chunks`` raises itself passes through."""
        try:
            try:
                for chunk in chunks:
                    _write_all(self._file, chunk)
                    self.size += len(chunk)
                os.fsync(self._file)
                found = os.fstat(self._file)
            finally:
                os.close(self._file)  # NFS reports a failed write as late as here
        except OSError as error:
            raise _deferred(error, self._where) from error
        if found.st_size != self.size:
            detail = f"{self._where}: {found.st_size} bytes are on disk where {self.size} were written"
            raise Deferred(detail, FAILED)
        self._identity = (found.st_dev, found.st_ino)

    def commit(self) -> None:
        """Make the message visible, for good.

        Raises Deferred. If the directory could not be synced the message stays where it is, and comes a second time
        when the MTA tries again: a duplicate is better than a loss.
        """
        try:
            self._publish()
            _sync_directory(self._target)
        except OSError as error:
            raise _deferred(error, self._where) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the name in tmp/ and close; harmless after ``commit`` and when repeated."""
        if self._tmp_name:
            # a second link in tmp/ harms nobody, and readers sweep it after 36 hours: maildir(5)
            with contextlib.suppress(OSError):
                os.unlink(self._tmp_name, dir_fd=self._tmp)
            self._tmp_name = ""
        while self._open:
            with contextlib.suppress(OSError):  # nothing was written through a directory
                os.close(self._open.pop())

    def _publish(self) -> None:
        """Give the message its final name, without ever replacing another one."""
        recreated = False
        for _ in range(_TRIES):
            # Dovecot refuses to serve a message whose ,S= differs from its size, hence st_size and no calculation.
            final = f"{_unique_name()},S={self.size}{self._info}"
            try:
                os.link(self._tmp_name, final, src_dir_fd=self._tmp, dst_dir_fd=self._target, follow_symlinks=False)
            except FileExistsError:
                if self._occupant(final) != self._identity:
                    continue
                # NFS repeated a request whose answer was lost: the link is ours. open(2), NOTES on O_EXCL.
            except FileNotFoundError:
                if recreated:
                    raise
                recreated = True
                self._recreate_target()
                continue
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self._occupant(final) is not None:
                    continue
                os.rename(self._tmp_name, final, src_dir_fd=self._tmp, dst_dir_fd=self._target)
            self.name = f"{self._directory}{self._part}/{final}"
            return
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _occupant(self, final: str) -> tuple[int, int] | None:
        try:
            found = os.stat(final, dir_fd=self._target, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _recreate_target(self) -> None:
        """Somebody has removed new/ since we opened it."""
        _make_directory(self._part, self._home)
        _sync_directory(self._home)
        self._target = self._enter(self._part)


class Maildir:
    """An open Maildir; close it, or use it as a context manager. ``fd`` is its directory, ``path`` what was given.

    Opening makes a missing tmp, new or cur, but never the Maildir itself: it may be an unmounted disk. Raises Deferred.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        bare = path.rstrip("/") or "/"  # with a slash behind it a symbolic link would be followed
        try:
            self.fd = os.open(bare, _DIRECTORY)
        except (OSError, ValueError) as error:
            why = "is a symbolic link" if os.path.islink(bare) else _words(error)
            raise Deferred(f"{path}: {why}", INACCESSIBLE) from error
        try:
            self._owners = {os.geteuid(), os.fstat(self.fd).st_uid}
            if _complete(self.fd):
                _sync_directory(self.fd)
        except OSError as error:
            self.close()
            raise Deferred(f"{path}: {_words(error)}", INACCESSIBLE) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory; harmless when repeated. Messages already prepared stay valid."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1

    def has_folder(self, name: str) -> bool:
        """Whether the folder is there and can take mail, perhaps after missing parts have been made.

        Raises Deferred where that cannot be told now.
        """
        if name.upper() == INBOX:
            return True
        if not _is_folder_name(name):
            return False
        try:
            home = os.open(f".{name}", _DIRECTORY, dir_fd=self.fd)
            try:
                for part in _PARTS:
                    _is_directory(part, home)
                return os.fstat(home).st_uid in self._owners
            finally:
                os.close(home)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in _FOLDER_TROUBLE:
                return False
            raise _deferred(error, self._where(name)) from error

    def prepare(self, folder: str, chunks: Iterable[bytes], flags: str = "") -> Prepared:
        """Write a message to the folder's tmp/ and sync it; nobody sees it before ``commit``.

        ``folder`` is INBOX in any case, or a name without its leading dot ("Lists.qmail"); it is made where missing.
        ``flags`` are info letters in ASCII order (maildir(5)). Raises FolderUnusable before ``chunks`` is touched, and
        Deferred; then no file is left behind.
        """
        if not re.fullmatch("[A-Za-z]*", flags):
            raise ValueError(f"Maildir flags are letters, not {flags!r}")
        is_inbox = folder.upper() == INBOX
        where = self.path if is_inbox else self._where(folder)
        try:
            if is_inbox:
                home, created = os.open(".", _DIRECTORY, dir_fd=self.fd), False
            else:
                home, created = self._open_folder(folder)
            prepared = Prepared(where, folder, flags, home, created=created)
        except OSError as error:
            if not is_inbox and error.errno in _FOLDER_TROUBLE:
                raise FolderUnusable(f"{where}: {_words(error)}") from error
            raise _deferred(error, where) from error
        try:
            prepared.fill(chunks)
        except BaseException:
            prepared.abort()
            raise
        return prepared

    def introduced(self, folder: str) -> None:
        """Remember that IMAP servers have been told of a folder that ``prepare`` has ``created``. Raises OSError."""
        home = os.open(f".{folder}", _DIRECTORY, dir_fd=self.fd)
        try:
            mark = os.open(_MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=home)
        finally:
            os.close(home)
        try:
            found = os.fstat(mark)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:  # a hard link may be another's file
                os.fchmod(mark, _INTRODUCED)
        finally:
            os.close(mark)

    def _where(self, folder: str) -> str:
        return f"{self.path}/.{folder}"

    def _open_folder(self, name: str) -> tuple[int, bool]:
        """Open the folder, complete, and say whether it is new."""
        if not _is_folder_name(name):
            raise FolderUnusable(f"{self.path}: {name!r} cannot be a folder's name")
        directory = f".{name}"
        missing = False
        try:
            home = os.open(directory, _DIRECTORY, dir_fd=self.fd)
        except FileNotFoundError:
            missing = True
            _make_directory(directory, self.fd)
            home = os.open(directory, _DIRECTORY, dir_fd=self.fd)
        try:
            if os.fstat(home).st_uid not in self._owners:
                raise FolderUnusable(f"{self._where(name)}: belongs to another user")
            marked, created = _mark_as_folder(home)
            if _complete(home) or marked:
                _sync_directory(home)
            if missing:  # even if another process was faster: it may not have come to this line
                _sync_directory(self.fd)
        except BaseException:
            os.close(home)
            raise
        return home, created


def spool(path: str) -> int:
    """Open an unnamed file in the Maildir's tmp/ to read and write: for a message that comes through a pipe.

    The caller closes the descriptor; the file is gone with it. Raises Deferred.
    """
    with Maildir(path) as maildir:
        try:
            tmp = os.open("tmp", _DIRECTORY, dir_fd=maildir.fd)
            try:
                return _unnamed_file(tmp)
            finally:
                os.close(tmp)
        except OSError as error:
            raise _deferred(error, f"{path}/tmp") from error


def _unnamed_file(directory: int) -> int:
    try:
        return os.open(".", os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    name, descriptor = _create(directory, os.O_RDWR)
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_folder_name(name: str) -> bool:
    """Whether the name stays inside the Maildir; which names are also wise is decided where rules are read."""
    return name.isprintable() and "/" not in name and all(name.split("."))


def _complete(home: int) -> bool:
    """Make the parts that are missing, and say whether any was."""
    missing = [part for part in _PARTS if not _is_directory(part, home)]
    for part in missing:
        _make_directory(part, home)
    return bool(missing)


def _is_directory(name: str, parent: int) -> bool:
    """Whether a directory of this name is there (True) or nothing (False).

    Raises NotADirectoryError for anything else, a symbolic link to a directory included.
    """
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{name} is not a directory")
    return True


def _make_directory(name: str, parent: int) -> bool:
    """Make a directory that survives a power cut once its parent is synced. False if somebody else was faster."""
    mode = os.fstat(parent).st_mode & 0o700
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return False
    made = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        _sync_directory(made)
    finally:
        os.close(made)
    return True


def _mark_as_folder(home: int) -> tuple[bool, bool]:
    """Maildir++: by this empty file deliverquota, maildrop and vpopmail tell that the quota is the parent's.

    Whether it was made now, and whether the folder is one of ours that nobody was told of: in a directory without any
    part of a folder it is made first of all.
    """
    bare = not any(_is_directory(part, home) for part in _PARTS)
    try:
        mode = _UNKNOWN if bare else _INTRODUCED
        os.close(os.open(_MARK, os.O_RDONLY | _NEW_FILE, mode, dir_fd=home))
    except FileExistsError:
        found = os.stat(_MARK, dir_fd=home, follow_symlinks=False)
        return False, stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == _UNKNOWN
    return True, bare


def _create(directory: int, access: int) -> tuple[str, int]:
    """Make a new file, never taking an existing one, no more accessible than its directory."""
    mode = os.fstat(directory).st_mode & 0o600
    for _ in range(_TRIES):
        name = _unique_name()
        try:
            return name, os.open(name, access | _NEW_FILE, mode, dir_fd=directory)
        except FileExistsError:
            continue
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def _unique_name() -> str:
    """At most 150 bytes: with ``,S=`` and flags behind it a name must fit into 255 for readers to rename the file.

    The random part keeps names apart when clocks go backwards, pids repeat or two hosts have one name.
    """
    seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
    host = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename)[:64] or "localhost"
    return f"{seconds}.M{microseconds}P{os.getpid()}Q{next(_serial)}R{os.urandom(8).hex()}.{host}"


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.write(descriptor, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def _sync_directory(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _words(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _deferred(error: OSError, where: str) -> Deferred:
    return Deferred(f"{where}: {_words(error)}", FULL if error.errno in _STORAGE_FULL else FAILED)
