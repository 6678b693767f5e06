"""Whose a Maildir is that was found in a tree, what its owner's and its domain's own files say of it, and whether a
setting leaves it alone.
"""

import functools
import os
import pwd
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from deliver.config import personal
from deliver.layers import layers, together
from deliver.settings import Config, Personal

_VPOPMAIL = re.compile(r".*/domains/(?:[0-9A-Za-z]/)?(?P<domain>[^/]+\.[^/]+)/(?:[0-9A-Za-z]/)?(?P<user>[^/]+)/Maildir")


def spared(maildir: str, patterns: Iterable[str]) -> bool:
    """Whether one of the ``patterns`` means this Maildir: its own path, or that of the directory which holds it."""
    paths = (maildir, os.path.dirname(maildir))
    return any(fnmatchcase(path, _real(pattern)) for pattern in patterns for path in paths)


@functools.cache
def _real(pattern: str) -> str:
    """The pattern for paths without symbolic links, as Maildirs are found (/home may be /usr/home), and without a slash
    at its end.
    """
    pattern = pattern.rstrip("/")
    plain = re.split(r"[*?\[]", pattern)[0]
    fixed = plain if plain == pattern else plain.rpartition("/")[0]
    return os.path.realpath(fixed) + pattern[len(fixed) :] if fixed else pattern


def layered(maildir: str, config: Config, uid: int) -> Personal:
    """What deliveries to this Maildir of the user ``uid`` go by beside the site's configuration. Raises Deferred."""
    return together(config, layers(config, whose(maildir, config, uid), maildir, personal, uid))


def whose(maildir: str, config: Config, uid: int) -> str:
    """The address, or the name, whose Maildir it is; "" where nobody knows.

    By the template of [users], by vpopmail's own way to lay out directories, or by its owner's entry in passwd(5).
    """
    template = config.users.maildir if config.users else ""
    for pattern in filter(None, (_pattern(template), _VPOPMAIL)):
        if found := pattern.fullmatch(maildir):
            parts = found.groupdict()
            return "@".join(filter(None, (parts.get("user"), parts.get("domain"))))
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return ""
    return entry.pw_name if os.path.realpath(entry.pw_dir) == os.path.dirname(maildir) else ""


def _pattern(template: str) -> re.Pattern[str] | None:
    """What matches the paths that a template makes."""
    parts = {"user": "(?P<user>[^/]+)", "domain": "(?P<domain>[^/]+)"}
    words = ""
    for piece in re.split(r"(\{(?:user|domain|recipient)\})", template):
        if piece == "{recipient}":
            words += parts.pop("user", "(?P=user)") + "@" + parts.pop("domain", "(?P=domain)")
        elif piece[:1] == "{" and piece[1:-1] in ("user", "domain"):
            words += parts.pop(piece[1:-1], f"(?P={piece[1:-1]})")
        else:
            words += re.escape(piece)
    return re.compile(words) if template else None
