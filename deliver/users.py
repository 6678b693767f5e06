"""Whose Maildir is it: the user lookup of LMTP. "Nobody" is said only where it is certain."""

import errno
import os
import re
import stat
import subprocess
from typing import NamedTuple

from deliver.envelope import extension_of
from deliver.errors import Deferred
from deliver.settings import USER_PLACEHOLDERS, Users

TIMEOUT = 20.0
"""Seconds for a lookup command; vuserinfo answers in milliseconds, a database that is down does not."""

_CANDIDATES = 10
"""Names tried for one address: a command may be asked for each. Of many separators the first ones count, since a list's
extension (you+list-2026-11-28-...) has more of them than anybody's name."""

_EX_NOUSER = 67  # sysexits.h
_PLACEHOLDER = re.compile("|".join(map(re.escape, USER_PLACEHOLDERS)))


class Found(NamedTuple):
    """A user's Maildir (absolute) and what of the address is an extension."""

    maildir: str
    extension: str


class CannotTell(Deferred):
    """The lookup failed, so nobody knows whether there is such a user."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, "4.3.0 Cannot look up the user")


def look_up(users: Users, address: str) -> Found | None:
    """The Maildir for ``local@domain``; None where there is nobody of that name. Raises CannotTell.

    The whole local part is tried first, then what stands before each "+" and "-", the longest first (dot-qmail(5)).
    Case does not count, as in vpopmail and qmail. ``address`` has no "/", no leading dot and no control characters in
    either part.
    """
    local, _, domain = address.rpartition("@")
    for end in _ends(local):
        if maildir := _maildir(users, local[:end].lower(), domain.lower()):
            return Found(maildir, extension_of(local[end:]))
    return None


def _ends(local: str) -> list[int]:
    """Where a user's name may end in a local part."""
    separators = [index for index, character in enumerate(local) if character in "+-" and index]
    return [len(local), *reversed(separators[: _CANDIDATES - 1])]


def _maildir(users: Users, user: str, domain: str) -> str:
    if users.passwd:
        return _from_passwd(user)
    if users.command:
        return _from_command(users.command, user, domain)
    if users.maildir:
        return _from_template(users.maildir, user, domain)
    raise CannotTell("[users] has none of the keys maildir, command and passwd")


def _from_template(template: str, user: str, domain: str) -> str:
    """The directory that would hold the user is there and the user's is not: nobody. All else is a failure.

    A symbolic link that leads nowhere is a user whose disk is not mounted.
    """
    own = template
    if name := re.search(r"\{(?:user|recipient)\}[^/]*", template):
        own = template[: name.end()]
    own = _filled(own, user, domain)
    holder = os.path.dirname(own)
    try:
        if not stat.S_ISDIR(os.stat(own).st_mode):  # vpasswd beside the users
            return ""
    except FileNotFoundError:
        if os.path.islink(own):
            raise CannotTell(f"[users] maildir: {own} leads to nothing that is there") from None
        if os.path.isdir(holder):
            return ""
        raise CannotTell(f"[users] maildir: {holder} is not there") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no directory can have this name
            return ""
        raise CannotTell(f"[users] maildir: {own}: {error.strerror}") from error
    return _filled(template, user, domain)


def _from_passwd(user: str) -> str:
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        if trouble := _name_service_trouble(user):
            raise CannotTell(f"[users] passwd: {trouble}") from None
        return ""
    return os.path.join(entry.pw_dir, "Maildir") if entry.pw_uid else ""


def _name_service_trouble(user: str) -> str:
    """Why the system cannot say whether there is this user, "" if it can: Python's pwd keeps that to itself.

    getpwnam_r(3) gives 0 without an entry where there is none, and an error where a directory service is down.
    """
    import ctypes

    entry, buffer = ctypes.create_string_buffer(1024), ctypes.create_string_buffer(64 * 1024)
    result = ctypes.c_void_p()
    code: int = ctypes.CDLL(None).getpwnam_r(
        os.fsencode(user), entry, buffer, ctypes.c_size_t(len(buffer)), ctypes.byref(result)
    )
    return os.strerror(code) if code else ""


def _from_command(command: tuple[str, ...], user: str, domain: str) -> str:
    """The home that a command prints, above its Maildir. Nobody: it says "no such user" (vuserinfo), or ends with 67.

    A bare 1 means nothing: so does every script end whose database is down. Nor does "no such user" below other words:
    vuserinfo says it of everybody where MySQL fails, which it tells on standard error.
    """
    if user.startswith("-"):  # no name of an account, but it could be an option of the command's
        return ""
    argv = [_filled(part, user, domain) for part in command]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotTell(f"[users] command: {error}") from error
    home = done.stdout.strip()
    if done.returncode == 0 and home.startswith("/") and "\n" not in home:
        return os.path.join(home, "Maildir")
    lines = [line for line in f"{done.stdout}\n{done.stderr}".lower().split("\n") if line.strip()]
    if done.returncode == _EX_NOUSER or (lines and all("no such user" in line for line in lines)):
        return ""
    said = f"{home} {done.stderr.strip()}".strip()[:200]
    raise CannotTell(f"[users] command: {argv[0]} ended with {done.returncode} and said {said!r}")


def _filled(text: str, user: str, domain: str) -> str:
    """``text`` with its placeholders filled, all at once: a user may be called "{domain}"."""
    values = dict(zip(USER_PLACEHOLDERS, (user, domain, f"{user}@{domain}"), strict=True))
    return _PLACEHOLDER.sub(lambda found: values[found[0]], text)
