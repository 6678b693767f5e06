"""What `deliver doctor` asks of every mailbox: who may use it, its quota, its spam folder and its .qmail.

Each check is one function and one line of CHECKS. It runs with the rights of the mailbox's owner.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deliver import config as configuration
from deliver import quota, subscriptions
from deliver.admin import adopt, qmailfile, tickbox, tree
from deliver.admin.doctor import Case, Said, closed, delivering_lines, room
from deliver.admin.qmailfile import Kind
from deliver.admin.whose import layered
from deliver.errors import DeliverError
from deliver.rules.model import is_inbox


class Place(NamedTuple):
    """One mailbox: the open Maildir, its absolute path, and its directory's."""

    fd: int
    maildir: str
    home: str
    state: os.stat_result


def mailbox_quota(_case: Case, place: Place) -> Iterator[Said]:
    """What maildirsize says and what is there."""
    try:
        usage = quota.assess(place.fd, None)
        if usage is None:
            return
        size, count = quota.measure(place.fd)
    except OSError as error:
        yield Said("warning", f"{place.maildir}: cannot be counted: {error.strerror or error}")
        return
    if (usage.size, usage.count) != (size, count):
        words = f"{place.maildir}: maildirsize says {usage.size} bytes and {usage.count} messages, on disk are "
        yield Said("warning", f"{words}{size} and {count}", f"deliver quota recount {place.maildir}")


def mailbox_folders(case: Case, place: Place) -> Iterator[Said]:
    """One spam folder, and one that mail programs show."""
    own = layered(place.maildir, case.settings, place.state.st_uid)
    folder = (own.spam or case.settings.spam).folder
    there = [name for name in ("Spam", "Junk") if _is_directory(place.fd, f".{name}")]
    if len(there) > 1:
        advice = f"spam goes to {folder}: move the other's mail there, and tell the mail program"
        yield Said("warning", f"{place.maildir}: has both .Spam and .Junk", advice)
    if is_inbox(folder) or not _is_directory(place.fd, f".{folder}"):
        return
    lists = {name: _lines(place.fd, name) for name in (subscriptions.COURIER, subscriptions.DOVECOT)}
    wanted = {subscriptions.COURIER: {f"INBOX.{folder}"}, subscriptions.DOVECOT: {folder, folder.replace(".", "\t")}}
    missing = [name for name, found in lists.items() if found is not None and not found & wanted[name]]
    if missing or not any(found is not None for found in lists.values()):
        where = ", ".join(missing) or "any list"
        advice = "the owner subscribes to it in the mail program; else spam is never seen"
        yield Said("warning", f"{place.maildir}: {folder} is not subscribed in {where}", advice)


def _is_directory(directory: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _lines(directory: int, name: str) -> set[str] | None:
    try:
        return set(qmailfile.read(directory, name)[0].decode("utf-8", "replace").split("\n"))
    except OSError:
        return None


def mailbox_permissions(case: Case, place: Place) -> Iterator[Said]:
    """Who may read the mail, and write the rules."""
    mode = place.state.st_mode
    if mode & 0o022:
        yield Said("problem", f"{place.maildir} can be written by others", f"chmod go-w {place.maildir}")
    elif mode & 0o007:
        yield Said("warning", f"{place.maildir} can be entered by everybody", f"chmod o= {place.maildir}")
    if mode & 0o700 != 0o700:
        yield Said("problem", f"{place.maildir} cannot be used by its owner", f"chmod u+rwx {place.maildir}")
    if case.settings.user_rules:
        path = os.path.join(place.home, case.settings.user_rules)
        with contextlib.suppress(DeliverError):
            error = configuration.personal(path, case.settings, place.state.st_uid).error
            if error:
                yield Said("warning", f"{path}: {error}", _advice(path, place.state))


def _advice(path: str, owner: os.stat_result) -> str:
    """What to do about an owner's file that is not used: root's `deliver check` sees nothing wrong with its mode."""
    with contextlib.suppress(OSError):
        state = os.lstat(path)
        trusted = state.st_uid in (0, owner.st_uid) and not state.st_mode & 0o022
        if stat.S_ISREG(state.st_mode) and not (trusted and os.access(path, os.R_OK, effective_ids=True)):
            return f"chown {owner.st_uid}:{owner.st_gid} {path}; chmod 600 {path}"
    return f"deliver check --user {path}"


def mailbox_quarantine(case: Case, place: Place) -> Iterator[Said]:
    """Whether what is to be held can be, and nobody else reads it. The site's is the same for all of an owner's."""
    directory = case.settings.quarantine.directory
    if not directory.startswith("{maildir}/"):
        if os.path.isdir(directory) and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            words = f"{directory} cannot be written by uid {os.geteuid()}: mail that is to be held waits"
            yield Said("problem", words, f"chown {os.geteuid()} {directory}; or one for each mailbox: see [quarantine]")
        return
    path = directory.removeprefix("{maildir}/")
    full = f"{place.maildir}/{path}"
    with contextlib.suppress(OSError):
        state = os.stat(path, dir_fd=place.fd, follow_symlinks=False)
        if state.st_uid != place.state.st_uid:
            advice = f"chown -R --reference={place.maildir} {full}"
            yield Said("problem", f"{full} does not belong to the Maildir's owner", advice)
        elif wrong := closed(full, state):
            yield wrong
    if wrong := room(_mount(place.maildir)):
        yield wrong


def _mount(path: str) -> str:
    """The file system that it lies in, which is said once for all mailboxes there."""
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def mailbox_qmail(case: Case, place: Place) -> Iterator[Said]:
    """What keeps qmail from delivering (dot-qmail(5), qmail-local's checks), and what delivers twice."""
    path = os.path.join(place.home, tickbox.FILE)
    try:
        directory = qmailfile.open_directory(place.home)
    except OSError:
        return
    try:
        home = os.fstat(directory)
        try:
            data, state = qmailfile.read(directory, tickbox.FILE)
        except FileNotFoundError:
            return
        except OSError as error:
            yield Said("warning", f"{path}: {error.strerror or error}")
            return
    finally:
        os.close(directory)
    if home.st_mode & 0o002:
        yield Said("problem", f"{place.home} can be written by everybody: qmail defers", f"chmod o-w {place.home}")
    if home.st_mode & stat.S_ISVTX:
        yield Said("warning", f"{place.home} is sticky: qmail defers all its mail", f"chmod -t {place.home}")
    lines = qmailfile.parse(data)
    if state.st_mode & 0o002:
        yield Said("problem", f"{path} can be written by everybody: qmail defers", f"chmod o-w {path}")
    if state.st_mode & 0o111 and any(line.kind is not Kind.FORWARD for line in qmailfile.spoken(lines)):
        yield Said("problem", f"{path} is executable: qmail defers what it does not forward", f"chmod a-x {path}")
    if lines and lines[0].kind is Kind.BLANK:
        yield Said("problem", f"{path}: the first line is blank: qmail defers", "delete that line")
    # A vpopmail user's HOME is the domain's directory, and a filter of the user's own may lie there.
    where = adopt.Home(place.home, os.path.dirname(place.home))
    _, left, _ = adopt.rewritten(lines, where, adopt.Site(case.command, case.settings))
    yield from delivering_lines(path, lines, f"`deliver adopt` leaves it: {left[0].why}" if left else "")


def mailbox_log(case: Case, _place: Place) -> Iterator[Said]:
    """Whether a delivery to this owner can be logged. The same for all of an owner's mailboxes."""
    path = case.settings.log.to
    if path in ("syslog", "stderr"):
        return
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:  # said by the site's check
        return
    except OSError as error:
        words = f"{path} cannot be written by uid {os.geteuid()} ({error.strerror}): that mail is logged in syslog"
        advice = f'chown {os.geteuid()} {path}; or [log] to = "syslog", where mail is delivered as several users'
        yield Said("problem", words, advice)


CHECKS: tuple[tuple[str, Callable[[Case, Place], Iterator[Said]]], ...] = (
    ("quota", mailbox_quota),
    ("folders", mailbox_folders),
    ("permissions", mailbox_permissions),
    ("quarantine", mailbox_quarantine),
    (".qmail", mailbox_qmail),
    ("log", mailbox_log),
)


def examine(case: Case, top: int, path: str, shown: str) -> Iterator[tuple[str, Said]]:
    """Run each check about the Maildir at ``path`` below the open directory ``top``; says nothing where all is well."""
    try:
        descriptor = qmailfile.open_directory(path, top)
    except OSError as error:
        yield "permissions", Said("problem", f"{shown}: {error.strerror}")
        return
    try:
        place = Place(descriptor, shown, os.path.dirname(shown), os.fstat(descriptor))
        for name, check in CHECKS:
            try:
                with tree.as_owner(place.state):
                    found = list(check(case, place))
            except Exception as error:
                found = [Said("problem", f"{shown}: the check itself failed: {type(error).__name__}: {error}")]
            for said in found:
                yield name, said
    finally:
        os.close(descriptor)


def homeless(case: Case, top: int, path: str, shown: str) -> Iterator[Said]:
    """Says so where the .qmail file at ``path`` calls us and there is no Maildir that we deliver into."""
    parent, name = os.path.split(path)
    try:
        directory = qmailfile.open_directory(parent, top)
    except OSError:  # the walk through the tree said it
        return
    try:
        with tree.as_owner(os.fstat(directory)):
            lines = qmailfile.parse(qmailfile.read(directory, name)[0])
            maildir = os.path.join(os.path.dirname(shown), case.settings.maildir.rstrip("/"))
            if not any(line.kind is Kind.OURS and b"--maildir" not in line.raw for line in lines):
                return
            if os.path.islink(maildir):
                advice = 'a link is not followed: put the Maildir there, or trust it: maildir = "Maildir/."'
                yield Said("problem", f"{shown}: {maildir} is a symbolic link: all mail waits", advice)
            elif not os.path.isdir(maildir):
                advice = f"maildirmake {maildir}, as the mailbox's owner"
                yield Said("problem", f"{shown}: {maildir} is not there, and is never made: all mail waits", advice)
    except OSError:
        return
    finally:
        os.close(directory)
