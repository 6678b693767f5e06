"""What the variables of an rc file are to a conversion (procmailrc(5), Environment).

A value may hold what only a message brings and a placeholder of ours stands for, such as {list-name}: it is kept
between two characters that no file has (Unicode's private use), until it is known what it is needed for.
"""

import re

from deliver.convert.variables import braced

_MARKED = re.compile("\ue000([a-z-]+)\ue001")


def placeholder(name: str) -> str:
    """A value that stands for a placeholder of ours."""
    return f"\ue000{name}\ue001"


def of_message(value: str) -> bool:
    """Whether a message has a part in this value."""
    return _MARKED.search(value) is not None


def with_placeholders(value: str) -> str:
    """The value as our rules write it, in a folder's name or a header line."""
    return _MARKED.sub(r"{\1}", braced(value))


OWN = frozenset(
    "SHELL PATH LOGFILE VERBOSE LOGABSTRACT LOG LOCKFILE LOCKEXT LOCKSLEEP LOCKTIMEOUT TIMEOUT NORESRETRY SUSPEND "
    "LINEBUF SHELLFLAGS SHELLMETAS SENDMAIL SENDMAILFLAGS UMASK COMSAT MSGPREFIX DROPPRIVS".split()
)
"""Those that steer procmail itself, or the programs that it runs: a rule needs none of them."""

STEERS = {
    "INCLUDERC": "another file's recipes; convert that file and put its rules here",
    "SWITCHRC": "another file's recipes, and none of those below; convert that file and put its rules here",
    "EXITCODE": "a rule says `bounce` where mail is to go back, and nothing makes it wait",
    "HOST": "a rule says `file` or `discard` where nothing below is to be asked",
    "TRAP": "no program is run at the end of a delivery",
    "DELIVERED": "a rule says `discard` where mail is to be lost",
    "SHIFT": "a rule has no arguments",
}
"""Those that say what becomes of mail, each with what stands for it here."""
