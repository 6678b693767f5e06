"""The Maildir++ quota, counted as Courier counts, in a maildirsize that Courier, Dovecot and vpopmail may share.

Line 1 is the limit ("100000000S,10000C": bytes, messages); every further line is a change, "BYTES COUNT", and their sum
is what is used. From 5120 bytes on, and when in doubt, the file is made anew by counting. The rules:
https://www.courier-mta.org/imap/README.maildirquota.html. Ours differ only where Courier would be led astray: a file
without a last newline, with a NUL or with numbers beyond 63 bits is counted anew, and a limit is never enforced because
of an error (Courier takes an I/O error for "over quota").

The programs of others take no lock, and a change that they record during our recount can be lost, as the rules accept.
Our own never lose one: they record under flock(2) on the Maildir, and whoever finds that the file was replaced since
it looked (before its message was there) counts anew instead of guessing whether its message is in the new sum.

All functions block; they may be called from any thread.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from deliver.units import Limit
from deliver.values import INBOX

_NAME = "maildirsize"
_FULL_AT = 5120  # bytes of maildirsize, from which on every program counts anew
_TRUSTED_FOR = 15 * 60  # seconds that a freshly counted "over quota" is not doubted
_LARGEST = 2**63 - 1
_TRIES = 5
_WARNING_PAUSE = 86400  # seconds
_TICK = 10_000_000  # nanoseconds in which file times may stand still: a tick of the kernel's clock (time(7))
_MANY = 1000  # messages in a directory, from which on its sum is remembered: reading 100,000 names takes 0.1 s
_SETTLED = 2_000_000_000  # nanoseconds without a change, after which another change has another time on any file system
_REMEMBERED = 1000  # directories
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO in place of the file must not hang us
_NOT_A_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}

# The numbers of one line as Courier reads them: white space, an optional minus, digits, whatever follows is ignored.
_CHANGE = re.compile(rb"[ \t\r\f\v]*+(-?)([0-9]++)[ \t\r\f\v]*+(-?)([0-9]++)")
# All lines at once, as every program writes them: what is usual takes a tenth of the time.
_CHANGES = re.compile(rb"(?: *+-?[0-9]{1,18}+ ++-?[0-9]{1,18}+\n)*+")
_LIMIT = re.compile(rb"([0-9]++)([SC]?)")
_DELETED = re.compile("[A-Z]*T")  # behind the first ":2,"

# Nearly all names of a directory at once, which costs a fifth of looking at each: those in new, and those in cur.
_IN_NEW = re.compile(r"(?m),S=([0-9]{1,18}+)$")
_IN_CUR = re.compile(r"(?m),S=([0-9]{1,18}+):2,[A-SU-Za-z]*+$")
_AT_ONCE = 10_000  # names


class _File(NamedTuple):
    """maildirsize as it was read: its first 5120 bytes at most."""

    data: bytes
    identity: tuple[int, int]
    mtime: float
    mode: int


class _Sums(NamedTuple):
    size: int
    messages: int
    lines: int


class _Prepared(Protocol):
    size: int

    def commit(self) -> None: ...


class _Inbox(Protocol):
    """What a warning needs of a Maildir."""

    fd: int

    def prepare(self, folder: str, chunks: Iterable[bytes]) -> _Prepared: ...


class Usage:
    """What a mailbox holds and may hold. Valid while the Maildir it was assessed from is open.

    ``size`` (bytes) and ``count`` (messages) are what is in use, 0 where that could not be found out. ``seconds`` are
    what one count may take.
    """

    def __init__(self, maildir_fd: int, limit: Limit, seen: _File | None, seconds: float, now: Callable[[], float]):
        self.limit = limit
        self.size = 0
        self.count = 0
        self._maildir_fd = maildir_fd
        self._seen = seen
        self.seconds = seconds
        self._now = now
        self._known = False
        self._counted = False
        self._lines = 0
        sums = _sums(seen.data) if seen else None
        self._must_rewrite = sums is None
        if sums:
            self.size, self.count, self._lines = sums
            self._known = True
        else:
            self._recount()

    def over(self, size: int, count: int = 1) -> bool:
        """Whether ``count`` more messages of ``size`` bytes together do not fit; exactly full still fits.

        Counts the messages on disk before it says so, unless the sum is a fresh count itself. False where that takes
        longer than the deadline or fails: then the message is delivered.
        """
        if not self._known or self._fits(size, count):
            return False
        if self._counted or self._is_trusted():
            return True
        self._must_rewrite = self._recount()
        return self._must_rewrite and not self._fits(size, count)

    @property
    def percent(self) -> int:
        """How full the mailbox is: of bytes or of messages, whichever is more; 0 without a limit, at most 100."""
        pairs = ((self.size, self.limit.size), (self.count, self.limit.count))
        shares = [used * 100 // limit for used, limit in pairs if limit]
        return min(100, max(shares, default=0))

    def words(self) -> str:
        """Describe the state for the log: "90 of 100 bytes and 3 messages in use"."""
        size = f"{self.size} of {self.limit.size} bytes" if self.limit.size else f"{self.size} bytes"
        count = f"{self.count} of {self.limit.count} messages" if self.limit.count else f"{self.count} messages"
        return f"{size} and {count} in use"

    def add(self, maildir_fd: int, size: int, count: int) -> None:
        """Write the change to maildirsize; the caller holds the lock. Raises OSError: see ``record``."""
        seen = self._seen
        try:
            if seen and not self._must_rewrite:
                file = _read(maildir_fd, os.O_RDWR | os.O_APPEND, b"%12d %12d\n" % (size, count), seen)
                if _continues(file, seen):
                    return
            else:
                file = _read(maildir_fd)
            limit = _limit(file.data) if file.data else self.limit
            mode = file.mode
        except FileNotFoundError:
            if seen and seen.data:
                return  # somebody has taken the quota away since
            limit, mode = self.limit, 0o600
        if not self._known:
            raise TimeoutError(errno.ETIMEDOUT, "could not be counted")
        _rewrite(maildir_fd, limit, mode, time.monotonic() + self.seconds)

    @property
    def changed(self) -> bool:
        """Whether there is a recount that maildirsize does not have yet."""
        return self._must_rewrite

    def _fits(self, size: int, count: int) -> bool:
        return not (0 < self.limit.size < self.size + size or 0 < self.limit.count < self.count + count)

    def _is_trusted(self) -> bool:
        """Whether a recount found it full less than 15 minutes ago. A time in the future proves nothing."""
        return self._seen is not None and self._lines == 1 and 0 <= self._now() - self._seen.mtime < _TRUSTED_FOR

    def _recount(self) -> bool:
        try:
            self.size, self.count = _count_in_peace(self._maildir_fd, time.monotonic() + self.seconds)
        except OSError:
            self.size, self.count, self._known = 0, 0, False
            return False
        self._known = self._counted = True
        return True


def counts(folder: str) -> bool:
    """Whether mail in this folder (a name without its leading dot, or INBOX) is counted; all but exactly Trash is."""
    return folder != "Trash"


def assess(
    maildir_fd: int, default: Limit | None, *, deadline: float = 10.0, now: Callable[[], float] = time.time
) -> Usage | None:
    """Find out what is used and allowed; None where no quota is kept. Changes nothing.

    ``default`` is the limit where there is no maildirsize (or an empty one). A maildirsize that is not a plain file of
    ours is ignored, and so is the quota. ``deadline`` is the number of seconds that one count may take.
    """
    try:
        seen: _File | None = _read(maildir_fd)
    except FileNotFoundError:
        seen = None
    except OSError:
        return None
    if seen and seen.data:
        return Usage(maildir_fd, _limit(seen.data), seen, deadline, now)
    if default and any(default):
        return Usage(maildir_fd, default, seen, deadline, now)
    return None


def record(maildir_fd: int, usage: Usage, added_size: int, added_count: int) -> str:
    """Count what was delivered: after the commit. Never raises; says what went wrong, "" for nothing.

    Call it with 0 and 0 after a refusal: a recount that was made for it is then kept for the next message.
    """
    if not (added_count or added_size or usage.changed):
        return ""
    try:
        lock = _lock(maildir_fd, time.monotonic() + usage.seconds)
        try:
            usage.add(maildir_fd, added_size, added_count)
        finally:
            os.close(lock)
    except Exception as error:
        return f"{_NAME}: {error}"
    return ""


def measure(maildir_fd: int, *, deadline: float = 60.0) -> tuple[int, int]:
    """Bytes and messages on disk, as they count, whatever maildirsize says. Raises OSError; TimeoutError is one."""
    return _count_in_peace(maildir_fd, time.monotonic() + deadline)


def recount(maildir_fd: int, *, deadline: float = 60.0) -> bool:
    """Replace maildirsize by a fresh count, its limit and mode kept; False where there is none. Raises OSError."""
    until = time.monotonic() + deadline
    lock = _lock(maildir_fd, until)
    try:
        try:
            file = _read(maildir_fd)
        except FileNotFoundError:
            return False
        if not file.data:
            return False
        _rewrite(maildir_fd, _limit(file.data), file.mode, until)
    finally:
        os.close(lock)
    return True


def warn(maildir: _Inbox, usage: Usage, percent: int, text: str, now: Callable[[], float] = time.time) -> bool:
    """Put a warning into the inbox if the mailbox was ``percent`` full or more, at most once in 24 hours.

    ``text`` is the rest of a message, from its further header lines on; Date and Message-Id go before it. Whether the
    warning was delivered; never raises. The stamp is Courier's and vpopmail's: the mtime of Maildir/quotawarn.
    """
    if usage.percent < max(percent, 1):
        return False
    try:
        if not _stamp(maildir.fd, now()):
            return False
        prepared = maildir.prepare(INBOX, [_warning(text, int(now()))])
        prepared.commit()
    except Exception:
        return False
    record(maildir.fd, usage, prepared.size, 1)
    return True


def _limit(data: bytes) -> Limit:
    """Line 1 as Courier reads it: numbers with a letter that it knows, the last one of a kind; all else is ignored."""
    found = {letter: min(int(number[:20]), _LARGEST) for number, letter in _LIMIT.findall(data.partition(b"\n")[0])}
    return Limit(found.get(b"S", 0), found.get(b"C", 0))


def _sums(data: bytes) -> _Sums | None:
    """Add all changes up; None where only a recount helps."""
    if len(data) >= _FULL_AT or not data.endswith(b"\n") or b"\0" in data:
        return None
    changes = data.partition(b"\n")[2]
    lines = changes.count(b"\n")
    if _CHANGES.fullmatch(changes):
        numbers = list(map(int, changes.split()))
        size, count = sum(numbers[::2]), sum(numbers[1::2])
    elif one_by_one := _line_by_line(changes.split(b"\n")[:-1]):
        size, count = one_by_one
    else:
        return None
    if not (0 <= size <= _LARGEST and 0 <= count <= _LARGEST):
        return None
    return _Sums(size, count, lines)


def _line_by_line(lines: list[bytes]) -> tuple[int, int] | None:
    size = count = 0
    for line in lines:
        if found := _CHANGE.match(line):
            if max(len(found[2]), len(found[4])) > len(str(_LARGEST)):  # int() refuses 4300 digits
                return None
            size += -int(found[2]) if found[1] else int(found[2])
            count += -int(found[4]) if found[3] else int(found[4])
    return size, count


def _open_own(maildir_fd: int, name: str, flags: int, mode: int = 0o600) -> tuple[int, os.stat_result]:
    """Open a plain file that nobody else can have planted there; any OSError says that there is none."""
    descriptor = os.open(name, flags | _SAFELY, mode, dir_fd=maildir_fd)
    found = os.fstat(descriptor)
    owners = {0, os.geteuid(), os.fstat(maildir_fd).st_uid}
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or found.st_uid not in owners:
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{name} is not a plain file of this user")
    return descriptor, found


def _read(maildir_fd: int, flags: int = os.O_RDONLY, append: bytes = b"", after: _File | None = None) -> _File:
    """Read maildirsize, and append a line to what was read if it continues ``after``."""
    descriptor, found = _open_own(maildir_fd, _NAME, flags)
    try:
        data = b""
        while chunk := os.read(descriptor, _FULL_AT - len(data)):
            data += chunk
        file = _File(data, (found.st_dev, found.st_ino), found.st_mtime, stat.S_IMODE(found.st_mode))
        if append and after and _continues(file, after):
            os.write(descriptor, append)  # one write on O_APPEND: lines of two programs do not mix
        return file
    finally:
        os.close(descriptor)


def _continues(file: _File, earlier: _File) -> bool:
    """Whether it is the same file, only appended to. The inode alone does not tell: it is used again soon."""
    return (
        file.identity == earlier.identity
        and file.data.startswith(earlier.data)
        and len(file.data) < _FULL_AT
        and file.data.endswith(b"\n")
    )


def _rewrite(maildir_fd: int, limit: Limit, mode: int, until: float) -> None:
    """Replace maildirsize by a fresh count, again where mail came or went meanwhile.

    A directory changed after we began has a time not before that of our own file, made first: so no clock is needed,
    and no assumption about its granularity.
    """
    tmp = os.open("tmp", _DIRECTORY, dir_fd=maildir_fd)
    try:
        newest = max(_times(maildir_fd).values(), default=0)
        for attempt in range(_TRIES):
            if attempt or newest > time.time_ns() - _TICK:
                time.sleep(_TICK / 1e9)
            name = f"{int(time.time())}.P{os.getpid()}R{os.urandom(8).hex()}.{_NAME}"
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=tmp)
            try:
                began = os.fstat(descriptor).st_mtime_ns
                size, count, _ = _count(maildir_fd, until)
                text = b"%s\n%12d %12d\n" % (_header(limit), size, count)
                if os.write(descriptor, text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fchmod(descriptor, mode & 0o666)
                os.fsync(descriptor)  # an empty maildirsize after a power cut would be "no quota" for ever
                os.rename(name, _NAME, src_dir_fd=tmp, dst_dir_fd=maildir_fd)
            except BaseException:
                os.unlink(name, dir_fd=tmp)
                raise
            finally:
                os.close(descriptor)
            if all(changed < began for changed in _times(maildir_fd).values()):
                return
    finally:
        os.close(tmp)


def _header(limit: Limit) -> bytes:
    parts = [b"%dS" % limit.size] * bool(limit.size) + [b"%dC" % limit.count] * bool(limit.count)
    return b",".join(parts) or b"0S"  # Dovecot's way to say "none"


def _lock(maildir_fd: int, until: float) -> int:
    """Wait for our turn among our own processes; close the result to end it.

    Where locks do not work, or the mailbox's owner holds this one, the turn is now: only exactness is lost.
    """
    lock = os.open(".", _DIRECTORY, dir_fd=maildir_fd)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
        except OSError:
            pass
        return lock


def _count_in_peace(maildir_fd: int, until: float) -> tuple[int, int]:
    """Bytes and messages on disk. A message moved while we count might be counted twice, so again until none was."""
    for _ in range(_TRIES):
        size, count, times = _count(maildir_fd, until)
        if times == _times(maildir_fd):
            return size, count
    raise BlockingIOError(errno.EAGAIN, "the Maildir does not hold still")


def _count(maildir_fd: int, until: float) -> tuple[int, int, dict[str, int]]:
    """Bytes, messages, and when each directory had changed before it was read."""
    size = count = 0
    times = {}
    for path, directory in _directories(maildir_fd):
        state = os.fstat(directory)
        times[path] = state.st_mtime_ns
        some, messages = _sum(directory, state, until)
        size += some
        count += messages
    return size, count, times


_sums_of: dict[tuple[int, ...], tuple[int, int]] = {}


def _sum(directory: int, state: os.stat_result, until: float) -> tuple[int, int]:
    """Bytes and messages in a directory of this state; what was read before and has not changed is not read again.

    No message changes once it is there (maildir(5)), and whoever adds, removes or renames one changes the directory's
    times, also where they are set back afterwards (ctime).
    """
    key = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
    if known := _sums_of.get(key):
        return known
    now = time.time_ns()
    size = count = 0
    for some, messages in _sizes(directory, until):
        size += some
        count += messages
    if count >= _MANY and max(state.st_mtime_ns, state.st_ctime_ns) + _SETTLED < now:
        if len(_sums_of) >= _REMEMBERED:
            _sums_of.clear()
        _sums_of[key] = size, count
    return size, count


def _times(maildir_fd: int) -> dict[str, int]:
    return {path: os.fstat(directory).st_mtime_ns for path, directory in _directories(maildir_fd)}


def _directories(maildir_fd: int) -> Iterator[tuple[str, int]]:
    """All cur and new that count, open. Readers move mail from new to cur: read cur first, and none counts twice."""
    for folder in _folders(maildir_fd):
        for part in ("cur", "new"):
            try:
                home = os.open(folder, _DIRECTORY, dir_fd=maildir_fd)
                try:
                    directory = os.open(part, _DIRECTORY, dir_fd=home)
                finally:
                    os.close(home)
            except OSError as error:
                if error.errno in _NOT_A_FOLDER:
                    continue
                raise
            try:
                yield f"{folder}/{part}", directory
            finally:
                os.close(directory)


def _folders(maildir_fd: int) -> list[str]:
    # os.listdir(fd) reads through a duplicate, whose position other threads with the same descriptor would share
    own = os.open(".", _DIRECTORY, dir_fd=maildir_fd)
    try:
        names = os.listdir(own)
    finally:
        os.close(own)
    return [".", *(name for name in names if name[0] == "." and counts(name[1:]))]


def _sizes(directory: int, until: float) -> Iterator[tuple[int, int]]:
    """Bytes and messages, some of the directory at a time."""
    names = os.listdir(directory)
    for start in range(0, len(names), _AT_ONCE):
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, "took too long to count")
        some = names[start : start + _AT_ONCE]
        text = "\n".join(some)
        colons = text.count(":")
        found = (_IN_CUR if colons else _IN_NEW).findall(text)
        lines = text.count("\n") + 1
        plain = len(found) == len(some) == lines and colons in (0, lines) and text[0] != "." and "\n." not in text
        sizes = list(map(int, found)) if plain else list(_one_by_one(directory, some, until))
        yield sum(sizes), len(sizes)


def _one_by_one(directory: int, names: list[str], until: float) -> Iterator[int]:
    for number, name in enumerate(names):
        if number % 256 == 0 and time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, "took too long to count")
        if name[0] == "." or _DELETED.match(name.partition(":2,")[2]):
            continue
        size = _size_in_name(name)
        if size is None:
            try:
                size = os.stat(name, dir_fd=directory, follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
        yield size


def _size_in_name(name: str) -> int | None:
    """Take the digits behind the last ",S=" before the flags, as Courier does (none are 0); None without ",S="."""
    _, marker, rest = name.partition(":")[0].rpartition(",S=")
    if not marker:
        return None
    digits = re.match("[0-9]{0,18}", rest)
    return int(digits[0] or 0) if digits else 0


def _stamp(maildir_fd: int, now: float) -> bool:
    """Renew quotawarn if it is a day old; whether it was."""
    try:
        stamp, found = _open_own(maildir_fd, "quotawarn", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        stamp, found = _open_own(maildir_fd, "quotawarn", os.O_WRONLY)
        if found.st_mtime + _WARNING_PAUSE > now:
            os.close(stamp)
            return False
    try:
        fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of two that found it old, one warns
        if os.fstat(stamp).st_mtime != found.st_mtime:
            return False
        os.pwrite(stamp, b"\n", 0)
        os.utime(stamp, (now, now))
    finally:
        os.close(stamp)
    return True


def _warning(text: str, now: int) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(now))
    message = f"Date: {date}\nMessage-Id: <{now}.overquota@{os.uname().nodename}>\n{text}"
    return message.encode("utf-8", "surrogateescape") + b"\n" * (not text.endswith("\n"))
