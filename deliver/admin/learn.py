"""What their owners have moved into and out of the spam folder is told to spamd, each message once.

A message says something where it lies otherwise than it was filed: in the spam folder although our header lines do not
call it spam, or elsewhere and read although they do. What spamd was told of it counts instead of how it was filed, so
that a message which is moved back is told anew; spamd forgets the first word itself.

Only what has changed since the last time is looked at: moving or marking a message changes its ctime.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from deliver import wiring
from deliver.admin.qmailfile import open_directory
from deliver.admin.tree import as_owner, is_read, messages
from deliver.admin.whose import layered, spared, whose
from deliver.errors import Deferred, DeliverError
from deliver.learned import Learned
from deliver.message import Message, Source, read_framing
from deliver.rules.model import is_inbox
from deliver.settings import Config, Personal
from deliver.values import INBOX, Content, Verb

KINDS = ("spam", "ham")

_HEAD = 64 * 1024  # bytes in which our own header lines stand
_NANO = 1_000_000_000
_SPAM_FOLDER = re.compile(r"(?i)(?:spam|junk(?:[ -]?e?-?mail)?)(?:\..*)?")
"""What mail programs make on their own, beside the configured one."""
_SPEAKS_OF_SPAM = re.compile(
    r"(?i)spam|junk|unerw.*nscht|ind.*sirable|no deseado|indesiderat|ongewenst|lixo|skr.*ppost|u.*nsket"
)
"""Also in other languages' Outlook; a letter beyond ASCII is several on disk (RFC 3501 section 5.1.3)."""

Teach = Callable[[Content, str, bool], bool]
"""Tells spamd of a message, for a recipient, that it is spam or not; whether it learned anything. Raises Deferred."""


class Result(NamedTuple):
    """What was (or would be) told of one mailbox: numbers by kind.

    ``known`` of them changed nothing; ``large`` were passed over; ``left`` wait for the next run, since there are more
    than `most`, or since spamd failed. ``why`` says what went wrong, "" for nothing.
    """

    maildir: str
    told: dict[str, int]
    known: int = 0
    large: int = 0
    left: int = 0
    why: str = ""
    spared: bool = False


class SpamdFails(Exception):
    """spamd cannot be told anything now; the message says why, and ``result`` what went before."""

    def __init__(self, why: str, result: Result) -> None:
        super().__init__(why)
        self.result = result


class _Lesson(NamedTuple):
    """A message that says something: ``changed`` in nanoseconds since the epoch."""

    changed: int
    folder: str
    name: str
    digest: str
    kind: str


def learn(
    top: int, path: str, shown: str, config: Config, teach: Teach, now: float, *, dry_run: bool = False
) -> Result:
    """Tell spamd what the owner of the Maildir at ``path`` has moved; ``path`` is relative to the open ``top``.

    ``shown`` is its absolute path, for [learn] except; ``now`` in seconds since the epoch. Raises SpamdFails; never
    OSError.
    """
    if spared(shown, config.learn.apart):
        return Result(shown, {}, spared=True)
    maildir = -1
    try:
        maildir = open_directory(path, top)
        state = os.fstat(maildir)
        with as_owner(state), Learned(maildir, dry_run=dry_run) as memory:
            address = whose(shown, config, state.st_uid)
            if not address and config.spamd and "{recipient}" in config.spamd.user:
                words = "whose mailbox is it? [users] maildir does not say, and spamd has Bayes data for each user"
                return Result(shown, {}, why=words)
            stance = _stance(config, layered(shown, config, state.st_uid))
            if memory.upto > now * _NANO:  # a clock was wrong
                memory.upto = 0
            upto = int((now - config.learn.after) * _NANO)
            return _Pupil(maildir, shown, config, memory, dry_run).go_through(stance, upto, address, teach)
    except BlockingIOError:
        return Result(shown, {}, why="another learn is at work there")
    except (OSError, DeliverError) as error:
        return Result(shown, {}, why=getattr(error, "strerror", "") or getattr(error, "detail", "") or str(error))
    finally:
        if maildir >= 0:
            os.close(maildir)


def _stance(config: Config, own: Personal) -> Callable[[str], str]:
    """What a message in a folder says by lying there: "spam", "ham" (if it was read), or "" for nothing.

    Where a rule files spam nobody has moved it.
    """
    spam = (own.spam or config.spam).folder
    rules = [rule for rule in (*config.rules, *own.rules) if rule.sees != "ham" or rule.never_spam]
    places = (action for rule in rules for action in (*rule.placements, *rule.copies) if action.verb is Verb.FILE)
    by_rules = {INBOX if is_inbox(place.target) else place.target for place in places}
    if is_inbox(spam):
        by_rules.add(INBOX)

    def stance(folder: str) -> str:
        if folder in by_rules:
            return ""
        if folder == spam or folder.startswith(f"{spam}.") or _SPAM_FOLDER.fullmatch(folder):
            return "spam"
        if _SPEAKS_OF_SPAM.search(folder):  # "Lists.spamassassin", "Spam-2019", "Courrier indésirable": nobody knows
            return ""
        return "" if any(fnmatchcase(folder.lower(), one.lower()) for one in config.learn.ignore) else "ham"

    return stance


class _Pupil:
    """One mailbox in work."""

    def __init__(self, maildir: int, shown: str, config: Config, memory: Learned, dry_run: bool) -> None:
        self._maildir = maildir
        self._config = config
        self._memory = memory
        self._dry_run = dry_run
        self._forgeries = wiring.forgeries(config)
        self._largest = config.spamd.max_size if config.spamd else 0
        self._large = 0
        self._result = Result(shown, {})

    def go_through(self, stance: Callable[[str], str], upto: int, address: str, teach: Teach) -> Result:
        """Tell what there is, the oldest move first, so that all before the first that is left was looked at."""
        lessons = sorted(self._lessons(stance, upto))
        told = dict.fromkeys(KINDS, 0)
        known = 0
        left: list[_Lesson] = []
        try:
            for lesson in lessons:
                if sum(told.values()) >= self._config.learn.most:
                    left.append(lesson)
                    continue
                try:
                    new = self._tell(lesson, address, teach)
                except Deferred as error:
                    left.append(lesson)
                    self._result = self._result._replace(why=error.detail)
                    if isinstance(error, wiring.NoLessons):
                        left += lessons[lessons.index(lesson) + 1 :]
                        raise SpamdFails(error.detail, self._so_far(told, known, left)) from error
                    continue
                if new is not None:
                    told[lesson.kind] += 1
                    known += not new
        finally:
            self._memory.settle(max(self._memory.upto, min([upto, *(one.changed - 1 for one in left)])))
        return self._so_far(told, known, left)

    def _so_far(self, told: dict[str, int], known: int, left: list[_Lesson]) -> Result:
        counted = {kind: number for kind, number in told.items() if number}
        return self._result._replace(told=counted, known=known, large=self._large, left=len(left))

    def _lessons(self, stance: Callable[[str], str], upto: int) -> Iterator[_Lesson]:
        for folder in ["", *(name for name in os.listdir(self._maildir) if name.startswith("."))]:
            kind = stance(folder[1:] or INBOX)
            if not kind:
                continue
            for directory, name, state in messages(self._maildir, folder):
                if not self._memory.upto < state.st_ctime_ns <= upto or "T" in name.partition(":2,")[2]:
                    continue
                if kind == "ham" and not is_read(name):
                    continue
                digest = self._moved(directory, name, kind)
                if digest and state.st_size > self._largest:
                    self._large += 1
                elif digest:
                    yield _Lesson(state.st_ctime_ns, folder, name, digest, kind)

    def _moved(self, directory: int, name: str, kind: str) -> str:
        """The digest of a message that was filed, or told, otherwise; "" for one that was not."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:  # the owner was faster
            return ""
        try:
            head = os.pread(fd, _HEAD, 0)
            filed = "spam" if _called_spam(head) else "ham"
            if filed == kind and not self._memory:
                return ""
            digest = self._message(fd).digest()
            return digest if (self._memory.get(digest) or filed) != kind else ""
        finally:
            os.close(fd)

    def _message(self, fd: int) -> Message:
        """As it was scanned, without our own lines."""
        return Message(Source.spooled(fd), read_framing(os.pread(fd, _HEAD, 0)), forgeries=self._forgeries)

    def _tell(self, lesson: _Lesson, address: str, teach: Teach) -> bool | None:
        """Whether spamd learned anything; None where the message has gone meanwhile."""
        fd = self._open(lesson)
        if fd < 0:
            return None
        try:
            message = self._message(fd)
            if message.digest() != lesson.digest:
                return None
            if self._dry_run:
                return True
            learned = teach(message, address, lesson.kind == "spam")
        finally:
            os.close(fd)
        self._memory.remember(lesson.digest, lesson.kind)
        time.sleep(self._config.learn.pause)
        return learned

    def _open(self, lesson: _Lesson) -> int:
        for part in ("cur", "new"):
            try:
                directory = open_directory(os.path.join(lesson.folder, part), self._maildir)
            except OSError:
                continue
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                return os.open(lesson.name, flags, dir_fd=directory)
            except FileNotFoundError:
                continue
            finally:
                os.close(directory)
        return -1


def _called_spam(head: bytes) -> bool:
    """Whether our own lines, or those of a filter before us, call it spam."""
    message = Message(Source.of(head), read_framing(head))
    values = (*message.fields("x-spam-flag")[:1], *message.fields("x-spam-status")[:1])
    return any(value.strip().lower().startswith(b"yes") for value in values)
