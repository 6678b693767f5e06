"""Whose Maildir is it: the user lookup of LMTP. "Nobody" is said only where it is certain."""

import os
import subprocess
from typing import NamedTuple

from deliver.config import Users
from deliver.envelope import extension_of
from deliver.errors import Deferred

TIMEOUT = 20.0
"""Seconds for a lookup command; vuserinfo answers in milliseconds, a database that is down does not."""


class Found(NamedTuple):
    """A user's Maildir (absolute) and what of the address is an extension."""

    maildir: str
    extension: str


def look_up(users: Users, address: str) -> Found | None:
    """The Maildir for ``local@domain``; None where there is nobody of that name. Raises Deferred where nobody can tell.

    The whole local part is tried first, then what stands before each "+" and "-", the longest first (dot-qmail(5)).
    """
    local, _, domain = address.rpartition("@")
    for user in _candidates(local):
        maildir = _maildir(users, user, domain.lower(), address)
        if maildir:
            return Found(maildir, extension_of(local[len(user) :]) if user != local.lower() else "")
    return None


def _candidates(local: str) -> list[str]:
    lower = local.lower()
    ends = [index for index, character in enumerate(lower) if character in "+-" and index]
    return [lower, *(lower[:end] for end in reversed(ends))][:10]


def _maildir(users: Users, user: str, domain: str, address: str) -> str:
    if users.passwd:
        return _from_passwd(user)
    if users.command:
        return _from_command(users.command, user, domain, address)
    return _from_template(users.maildir, user, domain)


def _from_template(template: str, user: str, domain: str) -> str:
    """The directory that would hold the user is there and the user's is not: nobody. All else is a failure."""
    holder, own = _parts(template, user, domain)
    maildir = template.replace("{user}", user).replace("{domain}", domain)
    try:
        os.stat(own)
    except FileNotFoundError:
        if os.path.isdir(holder):
            return ""
        raise Deferred(f"{holder} is not there", "4.3.0 Cannot look up the user") from None
    except OSError as error:
        raise Deferred(f"{own}: {error.strerror}", "4.3.0 Cannot look up the user") from error
    return maildir


def _parts(template: str, user: str, domain: str) -> tuple[str, str]:
    """The directory that holds all users, and this user's own."""
    kept: list[str] = []
    for part in template.split("/"):
        kept.append(part)
        if "{user}" in part:
            break
    own = "/".join(kept).replace("{user}", user).replace("{domain}", domain)
    return os.path.dirname(own), own


def _from_passwd(user: str) -> str:
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return ""
    return os.path.join(entry.pw_dir, "Maildir") if entry.pw_uid else ""


def _from_command(command: tuple[str, ...], user: str, domain: str, address: str) -> str:
    """The home that a command prints, above its Maildir. Nobody: "no such user" (vuserinfo), or nothing and 1 or 67."""
    values = {"{user}": user, "{domain}": domain, "{recipient}": f"{user}@{domain}", "{address}": address}
    argv = [_filled(part, values) for part in command]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Deferred(f"[users] command: {error}", "4.3.0 Cannot look up the user") from error
    home = done.stdout.strip()
    if done.returncode == 0 and home.startswith("/") and "\n" not in home:
        return os.path.join(home, "Maildir")
    if "no such user" in home.lower() or (done.returncode in (1, 67) and not home):
        return ""
    raise Deferred(f"[users] command: exit {done.returncode}, printed {home!r}", "4.3.0 Cannot look up the user")


def _filled(part: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        part = part.replace(name, value)
    return part
