"""The tick box "spam filter" of qmailadmin for one mailbox: its .qmail as qmailadmin would write it, at once.

qmailadmin's user.c puts the command where `DIR/Maildir/` would stand, behind forwards and before the vacation line; a
file with nothing but the Maildir line is removed.
"""

import os
import pwd
from typing import NamedTuple

from deliver import users
from deliver.admin import adopt, qmailfile
from deliver.admin.qmailfile import Kind, Line
from deliver.settings import Users

FILE = ".qmail"

_VPOPMAIL = "/home/vpopmail"  # where its user's home is, unless the password file knows better


class Mailbox(NamedTuple):
    """One user: ``directory`` holds Maildir and .qmail. ``virtual`` is true of vpopmail's."""

    address: str
    directory: str
    virtual: bool


class State(NamedTuple):
    """Whether mail passes the filter: ``word`` is enabled, disabled, maildrop, twice, nothing-stored or unknown."""

    word: str
    words: str


class CannotDo(Exception):
    """Why the box cannot be changed; says what to do."""


def look_up(address: str, settings: Users | None) -> Mailbox:
    """The mailbox of a vpopmail user (with "@") or of a user of the host. Raises CannotDo and users.CannotTell.

    A vpopmail user is found by the configuration's [users], else where vpopmail has it: domains/DOMAIN/USER.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        try:
            entry = pwd.getpwnam(address)
        except KeyError:
            raise CannotDo(f"{address}: there is no such user on this host") from None
        return _existing(Mailbox(address, entry.pw_dir, virtual=False))
    if not local or not domain or "/" in address or local.startswith(".") or domain.startswith(".") or "\0" in address:
        raise CannotDo(f"{address}: is no address of a mailbox")
    by = settings or Users(maildir=_vpopmails_template())
    try:
        found = users.look_up(by, address)
    except users.CannotTell as error:
        if settings:
            raise
        where = '[users] maildir = "/.../{domain}/{user}/Maildir"'
        why = error.detail.removeprefix("[users] maildir: ")
        raise CannotDo(f"{why}; if the domains lie elsewhere, say where: {where}") from None
    if found is None or found.extension:
        raise CannotDo(f"{address}: there is no such mailbox")
    return _existing(Mailbox(address, os.path.dirname(found.maildir), virtual=not by.passwd))


def _existing(box: Mailbox) -> Mailbox:
    if not os.path.isdir(os.path.join(box.directory, "Maildir")):
        raise CannotDo(f"{box.address}: {box.directory}/Maildir is not there")
    return box


def _vpopmails_template() -> str:
    try:
        home = pwd.getpwnam("vpopmail").pw_dir
    except KeyError:
        home = _VPOPMAIL
    return f"{home}/domains/{{domain}}/{{user}}/Maildir"


def state(lines: tuple[Line, ...], *, virtual: bool) -> State:
    """What the lines of a .qmail mean for the filter; no lines at all are a file that is not there."""
    kinds = [line.kind for line in qmailfile.spoken(lines)]
    delivering = [kind for kind in kinds if kind in qmailfile.DELIVERING]
    if len(delivering) > 1:
        return State("twice", f"{len(delivering)} lines deliver: each message comes as often")
    if Kind.OURS in kinds:
        return State("enabled", "mail passes the filter")
    if Kind.MAILDROP in kinds:
        return State("maildrop", "mail passes maildrop")
    if not kinds or Kind.MAILDIR in kinds:
        plain = "mail goes to the Maildir" if virtual or kinds else "there is no .qmail: the host's default decides"
        return State("disabled", plain)
    if Kind.AGENT in kinds or Kind.PROGRAM in kinds or Kind.SPAMC in kinds or Kind.MBOX in kinds:
        return State("unknown", "another program or an mbox has the mail")
    return State("nothing-stored", "mail is sent on or deleted, and not stored here")


def enabled(lines: tuple[Line, ...], home: adopt.Home, site: adopt.Site, *, virtual: bool) -> list[Line]:
    """The lines with the box ticked. Raises CannotDo."""
    now = state(lines, virtual=virtual)
    if now.word == "enabled":
        return list(lines)
    if now.word == "maildrop":
        after, left, _ = adopt.rewritten(lines, home, site)
        if left:
            raise CannotDo(f"line {left[0].line} calls maildrop: {left[0].why}")
        return after
    if now.word != "disabled":
        raise CannotDo(now.words)
    place = next((at for at, line in enumerate(lines) if line.kind is Kind.MAILDIR), len(lines))
    below = lines[place + 1 :]
    following = qmailfile.spoken(below)
    answers = bool(following) and all(line.kind is Kind.AUTORESPONDER for line in following)
    ours = qmailfile.program(site.command + (" --stop-after-spam" if answers else ""))
    return [*lines[:place], ours, *below]


def disabled(lines: tuple[Line, ...], box: Mailbox) -> list[Line]:
    """The lines with the box not ticked: the Maildir stands in our place; none where that is all. Raises CannotDo."""
    now = state(lines, virtual=box.virtual)
    if now.word == "disabled":
        return list(lines)
    if now.word != "enabled":
        raise CannotDo(now.words + ("; `deliver adopt` first" if now.word == "maildrop" else ""))
    where = f"{box.directory.rstrip('/')}/Maildir/" if box.virtual else "./Maildir/"
    plain = qmailfile.parse(os.fsencode(where) + b"\n")[0]
    after = [plain if line.kind is Kind.OURS else line for line in lines]
    # Without the file vdelivermail takes the Maildir; qmail-local takes the host's default, which may be an mbox.
    return [] if box.virtual and [line.kind for line in after] == [Kind.MAILDIR] else after


def read(box: Mailbox) -> tuple[Line, ...]:
    """The lines of the mailbox's .qmail, () where there is none. Raises OSError."""
    directory = qmailfile.open_directory(box.directory)
    try:
        return qmailfile.parse(qmailfile.read(directory, FILE)[0])
    except FileNotFoundError:
        return ()
    finally:
        os.close(directory)


def write(box: Mailbox, old: tuple[Line, ...], new: list[Line]) -> None:
    """Replace the .qmail that had the ``old`` lines; without lines it is removed. Raises OSError, CannotDo."""
    directory = qmailfile.open_directory(box.directory)
    try:
        try:
            before, found = qmailfile.read(directory, FILE)
        except FileNotFoundError:
            before, found = b"", None
        if before != qmailfile.render(old):
            raise CannotDo("has been changed by others meanwhile; try again")
        if not new:
            if found:
                qmailfile.remove(directory, FILE)
            return
        state = found or os.fstat(directory)
        mode = found.st_mode if found else 0o600
        qmailfile.replace(directory, FILE, qmailfile.render(new), uid=state.st_uid, gid=state.st_gid, mode=mode)
    finally:
        os.close(directory)
