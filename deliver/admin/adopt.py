"""Moving in from maildrop: the lines of .qmail files that call it become ours, and what cannot is said with its reason.

Each file is replaced at once and is synced; what it was is in a journal, synced before the first file of it changes, so
that `undo` finds every change whatever interrupted us. No symbolic link below the root is followed.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from deliver.admin import qmailfile, tree
from deliver.admin.qmailfile import DELIVERING, Filtering, Kind, Line
from deliver.config import personal
from deliver.errors import DeliverError
from deliver.rules.logic import EVERY_MESSAGE
from deliver.settings import Config

SITE_FILTERS = (
    "/usr/local/etc/mail/mailfilter",  # Mail::Toaster
    "/etc/mailfilter",  # qmailadmin
    "/etc/mail/mailfilter",  # QMailToaster
    "/var/qmail/bin/maildrop-filter",  # qmailrocks
    "/etc/maildroprc",  # Gentoo's qmailadmin, vpopmail --enable-maildrop
)
"""Filter files that these distributions put there for the site, taken for replaced as [maildrop] replaces is."""

JOURNAL = "changes.jsonl"

BATCH = 512
"""Files whose old text is synced together."""

AT_ONCE = 8
"""Files written at the same time: the disk syncs those together."""

# What the toaster's filter includes of a user's (facts of its version 2.17, steps 3 and 10).
_INCLUDED = (".mailfilter", "Maildir/.mailfilter", "Maildir/mailfilter")


# What qmailadmin's --enable-spamcmd-needs-email puts behind its command, and a shell takes as it stands.
_ADDRESS = re.compile(r"[A-Za-z0-9._+=-]+@[A-Za-z0-9.-]+")


_PROCMAIL = re.compile(r"""[\s|/"']procmail(?:["'\s]|$)""")


class Trouble(NamedTuple):
    """What is said of the line of that number: why it stays although it calls maildrop, or what was done."""

    line: int
    why: str


class Decision(NamedTuple):
    """What is to become of one file: ``after`` equals ``before`` where nothing is. ``notes`` say what was done."""

    path: str
    lines: tuple[Line, ...]
    before: bytes
    after: bytes
    state: os.stat_result
    left: tuple[Trouble, ...] = ()
    notes: tuple[Trouble, ...] = ()


class Failed(NamedTuple):
    """A file or directory that could not be read or written, and why."""

    path: str
    why: str


class Site(NamedTuple):
    """What decides: our ``command``, the configuration, and filter files that it replaces beside SITE_FILTERS."""

    command: str
    config: Config
    replaces: tuple[str, ...] = ()

    def is_replaced(self, path: str) -> bool:
        """Whether the configuration does this filter's work."""
        known = (*SITE_FILTERS, *self.replaces, *self.config.maildrop.replaces)
        return os.path.normpath(path) in map(os.path.normpath, known)


class Root:
    """An open tree. Paths are relative to it, and no part of them is ever a symbolic link.

    Two runs on one tree would get in each other's way, so the second raises BlockingIOError.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.fd = qmailfile.open_directory(self.path)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @contextlib.contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The open directory of a file, and the file's name in it. Raises OSError."""
        directory, _, name = path.rpartition("/")
        descriptor = qmailfile.open_directory(directory, self.fd)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)


def find(root: Root) -> Iterator[str | Failed]:
    """The paths of all .qmail files, in order; and what could not be looked at."""
    for found in tree.walk(root.fd):
        if found.kind in ("failed", "link"):
            yield Failed(found.path, found.why)
        elif found.kind == "qmail":
            yield found.path


def decide(root: Root, path: str, site: Site) -> Decision | Failed:
    """What a file's lines are and what is to become of them. Changes nothing."""
    try:
        with root.parent(path) as (directory, name):
            before, state = qmailfile.read(directory, name)
    except OSError as error:
        return Failed(path, error.strerror or str(error))
    lines = qmailfile.parse(before)
    home = Home(os.path.normpath(os.path.join(root.path, os.path.dirname(path))), root.path)
    after, left, notes = rewritten(lines, home, site)
    left += _of_procmail(lines, home, site)
    return Decision(path, lines, before, qmailfile.render(after), state, tuple(sorted(left)), tuple(notes))


class Home(NamedTuple):
    """The directory of a .qmail file, and the top of the tree that it lies in."""

    path: str
    top: str

    def above(self) -> Iterator[str]:
        """Where HOME may be: here for a user of the host, the domain's directory for one of vpopmail's."""
        here = self.path
        while True:
            yield here
            if here == self.top or not here.startswith(self.top):
                return
            here = os.path.dirname(here)


def rewritten(lines: tuple[Line, ...], home: Home, site: Site) -> tuple[list[Line], list[Trouble], list[Trouble]]:
    """The lines with maildrop's in our words, those that stay with the reason, and what was done.

    All of maildrop's lines or none: a file in which one stays would deliver twice.
    """
    left: list[Trouble] = []
    notes: list[Trouble] = []
    fit = []
    for number, line in enumerate(lines, 1):
        if line.call is not None:
            why = objection(line.call, home, site)
            if why:
                left.append(Trouble(number, why))
            else:
                fit.append(number - 1)
    others = [at for at, line in enumerate(lines) if line.kind in DELIVERING and line.kind not in _ONES]
    if fit and others:
        why = f"line {others[0] + 1} delivers as well ({lines[others[0]].kind.value}): delete one of the two"
        left += [Trouble(at + 1, why) for at in fit]
    elif fit and left:
        left += [Trouble(at + 1, "another line that calls maildrop stays") for at in fit]
    if left or not fit:
        return list(lines), sorted(left), notes
    ours = any(line.kind is Kind.OURS for line in lines)
    after: list[Line] = []
    for at, line in enumerate(lines):
        if at not in fit:
            after.append(line)
        elif ours:
            notes.append(Trouble(at + 1, "removed: it would be a second delivery"))
        else:
            ours = True
            after.append(_ours(line, lines[at + 1 :], site))
            notes.append(Trouble(at + 1, "rewritten"))
    return after, left, notes


_ONES = {Kind.OURS, Kind.MAILDROP}


def _ours(line: Line, below: tuple[Line, ...], site: Site) -> Line:
    """Our line in maildrop's place.

    An autoresponder must not answer spam; but whatever else stands below would be skipped, too (qmail-command(8), 99).
    """
    call = line.call or Filtering()
    rest = [one for one in qmailfile.spoken(below) if one.kind is not Kind.MAILDROP]
    stop = bool(rest) and all(one.kind is Kind.AUTORESPONDER for one in rest)
    words = [site.command, *(["--stop-after-spam"] if stop else []), *call.arguments]
    ours = qmailfile.program(" ".join(words))
    return ours if line.raw.endswith(b"\n") else ours._replace(raw=ours.raw.rstrip(b"\n"))


def objection(call: Filtering, home: Home, site: Site) -> str:
    """Why this call of maildrop is not ours to replace; "" if it is."""
    return (
        call.trouble
        or _of_program(call, home, site)
        or _of_options(call, site)
        or _of_spamc(call, site)
        or _of_maildir(home, site)
        or _of_filter(call, home, site)
    )


def _of_program(call: Filtering, home: Home, site: Site) -> str:
    import shutil

    if call.program.startswith(("~", "$", f"{home.top}/")):
        return f"{call.program} is a program of the user's own"

    found = os.path.realpath(shutil.which(call.program) or call.program)
    if found == os.path.realpath(site.command.split()[0]) or os.path.basename(found) == "deliver":
        return f"{call.program} is ours already, by a symbolic link"
    return ""


def _of_options(call: Filtering, site: Site) -> str:
    strange = [word for word in call.arguments if not _ADDRESS.fullmatch(word)]
    if strange:
        return f'the argument "{strange[0]}" means something to the filter alone'
    if len(call.arguments) > 1:
        return "it has more than one argument behind the filter file"
    for option, value in call.options:
        if option == "-w" and value == str(site.config.quota.warn_at):
            continue
        if option == "-w":
            return f"-w {value} is [quota] warn-at of the configuration, which says {site.config.quota.warn_at}"
        if option == "-V" or (option == "-f" and value in ("$SENDER", "${SENDER}")):
            continue
        return f"option {option} has no counterpart"
    for header in call.headers:
        name, colon, value = header.partition(":")
        pair = (name.strip().lower(), value.strip())
        added = {
            (key.lower(), text.strip())
            for rule in site.config.rules
            if rule.condition is EVERY_MESSAGE and rule.sees == "all"
            for key, text in rule.headers
        }
        if not colon or pair not in added:
            words = [json.dumps(text, ensure_ascii=False) for text in (name.strip(), value.strip())]  # TOML's as well
            rule = ("[[rule]]", 'sees = "all"', f"add-header = {{ {words[0]} = {words[1]} }}")
            why = "-A adds a header line; the configuration needs, before all other rules:"
            return "\n        ".join((why, *rule))
    return ""


def _of_spamc(call: Filtering, site: Site) -> str:
    if not call.spamc:
        return ""
    spamd = site.config.spamd
    if spamd is None:
        return "spamc stands before maildrop, and the configuration has no [spamd]"
    if any(word.startswith(("-u", "--username")) for word in call.spamc[1:]) and not spamd.user:
        return 'spamc -u asks for each user\'s preferences, and [spamd] user is ""; write user = "{recipient}"'
    return ""


def _of_maildir(home: Home, site: Site) -> str:
    maildir = os.path.join(home.path, site.config.maildir)
    if not os.path.isdir(maildir):
        return f"{maildir} is not there, and is never made"
    return ""


def _of_filter(call: Filtering, home: Home, site: Site) -> str:
    """A user's own rules must not be lost: those that the line names, and those that the site's filter includes."""
    where = call.filter
    if where and os.path.isabs(where) and site.is_replaced(where):
        own = next((name for name in _INCLUDED if _has_text(os.path.join(home.path, name))), "")
        return _needs_conversion(os.path.join(home.path, own), home, site) if own else ""
    if not where:
        paths = [os.path.join(above, ".mailfilter") for above in home.above()]
        own = next(filter(_has_text, paths), "")
        return _needs_conversion(own, home, site) if own else ""
    below = re.sub(r"^(~|\$HOME|\$\{HOME\}|\$PWD|\$VHOME)/", "", where)
    if "$" in below:
        return f'the filter file "{where}" depends on a variable'
    if os.path.isabs(below) and not f"{os.path.normpath(below)}/".startswith(f"{home.path}/"):
        return f"the filter {where} is not known; if the configuration does its work, list it in [maildrop] replaces"
    starts = [home.path] if below == where else list(home.above())
    own = next(filter(os.path.isfile, (os.path.join(start, below) for start in starts)), "")
    return _needs_conversion(own, home, site) if own else f"there is no filter file {where}"


def _has_text(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


def _needs_conversion(own: str, home: Home, site: Site) -> str:
    own, path = os.path.normpath(own), _own_rules(home, site)
    if not site.config.user_rules or not os.path.lexists(path):
        return f"{own} is a filter of the user's own: first {_convert('maildrop', own, path)}"
    try:
        owner = os.stat(os.path.dirname(path))
        with tree.as_owner(owner):  # what root can read, a delivery may not
            error = personal(path, site.config, owner.st_uid).error
    except (DeliverError, OSError) as failure:
        error = str(failure)
    return f"{path}, the conversion of {own}, cannot be used: {error}" if error else ""


def _own_rules(home: Home, site: Site) -> str:
    beside = os.path.dirname(os.path.normpath(os.path.join(home.path, site.config.maildir)))
    return os.path.join(beside, site.config.user_rules)


def _convert(language: str, own: str, path: str) -> str:
    return f"deliver convert {language} {shlex.quote(own)} -o {shlex.quote(path)}"


def _of_procmail(lines: tuple[Line, ...], home: Home, site: Site) -> list[Trouble]:
    """Lines that call procmail are for people to change: what its recipes do, and in which file, only they can tell."""
    recipes = next(filter(_has_text, (os.path.join(above, ".procmailrc") for above in home.above())), "")
    first = f"{_convert('procmail', recipes, _own_rules(home, site))}, then " if recipes else ""
    why = f"calls procmail; {first}write |{site.command} in its place"
    numbered = enumerate(lines, 1)
    return [Trouble(at, why) for at, line in numbered if line.kind is Kind.AGENT and _PROCMAIL.search(line.text)]


class Journal:
    """What files were before we changed them, one JSON object a line; raises OSError."""

    def __init__(self, directory: str, root: Root) -> None:
        self.directory = os.path.abspath(directory)
        if f"{os.path.realpath(self.directory)}/".startswith(f"{root.path}/"):
            raise OSError(errno.EINVAL, f"{self.directory} lies in {root.path}: the backup must be outside")
        self._root = root
        self._descriptor = -1

    def write(self, decisions: Iterable[Decision]) -> None:
        """Write down what these files are; on disk when this returns."""
        if self._descriptor < 0:
            self._open()
        text = b""
        for one in decisions:
            entry = {
                "path": one.path,
                "before": one.before.decode("utf-8", "surrogateescape"),
                "after": one.after.decode("utf-8", "surrogateescape"),
                "uid": one.state.st_uid,
                "gid": one.state.st_gid,
                "mode": one.state.st_mode & 0o7777,
            }
            text += json.dumps(entry).encode("ascii") + b"\n"
        self._append(text)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _open(self) -> None:
        made = []
        here = self.directory
        while not os.path.isdir(here):
            made.append(here)
            here = os.path.dirname(here)
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(os.path.join(self.directory, JOURNAL), flags, 0o600)
        size = os.fstat(self._descriptor).st_size
        # A run that was killed may have left half a line, for which nothing was done.
        torn = size and os.pread(self._descriptor, 1, size - 1) != b"\n"
        self._append((b"\n" if torn else b"") + json.dumps({"root": self._root.path}).encode("ascii") + b"\n")
        for path in (self.directory, *(os.path.dirname(one) for one in made)):
            descriptor = qmailfile.open_directory(path)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _append(self, text: bytes) -> None:
        while text:
            text = text[os.write(self._descriptor, text) :]
        os.fsync(self._descriptor)


def carry_out(root: Root, decisions: list[Decision], journal: Journal) -> list[Failed]:
    """Write the journal, then the files; what failed. Raises OSError where the journal cannot be written."""
    journal.write(decisions)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [failed for failed in pool.map(lambda one: _carry_out(root, one), decisions) if failed]


def _carry_out(root: Root, one: Decision) -> Failed | None:
    return _put(root, one.path, one.before, one.after, one.state.st_uid, one.state.st_gid, one.state.st_mode)


def _put(root: Root, path: str, old: bytes, new: bytes, uid: int, gid: int, mode: int) -> Failed | None:
    try:
        with root.parent(path) as (directory, name):
            now, _ = qmailfile.read(directory, name)
            if now == new:
                qmailfile.sweep(directory, name)
                return None
            if now != old:
                return Failed(path, "has been changed by others meanwhile and was left")
            qmailfile.replace(directory, name, new, uid=uid, gid=gid, mode=mode)
    except OSError as error:
        return Failed(path, error.strerror or str(error))
    return None


class Entry(NamedTuple):
    """One line of a journal."""

    path: str
    before: bytes
    after: bytes
    uid: int
    gid: int
    mode: int


def read_journal(directory: str) -> tuple[str, list[Entry]]:
    """The root and the changes of a backup, the last one first. Raises OSError or ValueError."""
    root = ""
    entries = []
    with open(os.path.join(directory, JOURNAL), "rb") as file:
        for line in file:
            try:
                found: dict[str, Any] = json.loads(line)
            except ValueError:  # half a line: see Journal
                continue
            if "root" in found:
                if root and root != found["root"]:
                    raise ValueError(f"{directory} is the backup of two trees, {root} and {found['root']}")
                root = found["root"]
                continue
            for key in ("before", "after"):
                found[key] = found[key].encode("utf-8", "surrogateescape")
            entries.append(Entry(**found))
    if not root:
        raise ValueError(f"{directory} has no backup in it")
    return root, entries[::-1]


def undo(root: Root, entries: Iterable[Entry]) -> Iterator[Failed | None]:
    """Make files what they were before, one answer for each entry; a file that has been changed since is left."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        batch: dict[str, Entry] = {}
        for entry in entries:
            if entry.path in batch or len(batch) == BATCH:  # of one file, one change after the other
                yield from pool.map(lambda one: _undo(root, one), batch.values())
                batch = {}
            batch[entry.path] = entry
        yield from pool.map(lambda one: _undo(root, one), batch.values())


def _undo(root: Root, entry: Entry) -> Failed | None:
    with contextlib.suppress(OSError), root.parent(entry.path) as (directory, name):
        now, _ = qmailfile.read(directory, name)
        if now == entry.before:
            qmailfile.sweep(directory, name)
            return None
    return _put(root, entry.path, entry.after, entry.before, entry.uid, entry.gid, entry.mode)


def default_backup() -> str:
    """Where a run of this second keeps what it changes."""
    return time.strftime("/var/lib/deliver/adopt/%Y-%m-%dT%H-%M-%S")


Progress = Callable[[int], object]
"""Told after each batch how many files are done with."""


def run(
    root: Root, paths: list[str], site: Site, journal: Journal | None, progress: Progress
) -> Iterator[Decision | Failed]:
    """Decide about each file and, with a ``journal``, carry it out, batch by batch.

    Yields what was decided, or what failed in its place. Raises OSError where the journal cannot be written.
    """
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        found = [decide(root, path, site) for path in batch]
        changes = [one for one in found if isinstance(one, Decision) and one.before != one.after]
        failed = {one.path: one for one in carry_out(root, changes, journal)} if journal and changes else {}
        yield from (failed.get(one.path, one) for one in found)
        progress(len(batch))
