"""The mailboxes that procmail delivers to, files and directories, as folders of a Maildir; and addresses."""

import re
from collections.abc import Callable, Iterable

from deliver.convert.patterns import Untranslatable, sound
from deliver.convert.procmail_source import words
from deliver.convert.procmail_variables import of_message, with_placeholders
from deliver.values import INBOX

HOME, ORIGINAL = "~", "~inbox"
"""What stands for the home directory and for $ORGMAIL in values of variables."""

_INBOXES = {ORIGINAL, f"{HOME}/Maildir", f"{HOME}/Mailbox", f"{HOME}/mbox"}


def folder(path: str, base: str | None, default: str) -> str:
    """The folder for a path, "" for /dev/null. ``base`` is $MAILDIR, ``default`` $DEFAULT. Raises Untranslatable."""
    if path == "/dev/null":
        return ""
    if base is None:
        raise Untranslatable("MAILDIR depends on the message, or on a program")
    path, base = (re.sub(r"/{2,}", "/", one) for one in (path, base))
    bare = path.rstrip("/")
    if bare in _INBOXES or re.fullmatch(r"/(?:var/)?(?:spool/)?mail/[^/]+", bare):
        return INBOX
    rest = path
    for start in (f"{base.rstrip('/')}/", f"{HOME}/"):
        rest = rest.removeprefix(start)
    if rest.startswith(("/", "~")):
        raise Untranslatable(f"{path} is not in the mailbox")
    parts = [part for part in rest.split("/") if part not in {"", "."}]
    if parts and parts[0] in {"Maildir", "Mail", "mail"}:
        del parts[0]
    if len(parts) > 1 and parts[-1] == "new":  # of a Maildir that is named by its part
        del parts[-1]
    if path == default and (not parts or parts[-1].lower() in {"inbox", "mbox", "mailbox", "new"}):
        return INBOX
    return named(level for part in parts for level in part.split("."))


def addresses(text: str, value: Callable[[str], str | None]) -> list[str]:
    """The addresses behind "!", at least one. ``value`` expands a word. Raises Untranslatable."""
    found: list[str] = []
    for word in words(text.partition("#")[0] if " #" in text else text):
        known = value(word)
        if known is None or of_message(known):
            raise Untranslatable("the address depends on the message, or on a program")
        for address in known.replace(",", " ").split():
            if address.startswith("-"):
                raise Untranslatable("options for the program that sends mail on have no counterpart")
            sound({"forward": address})
            found.append(address)
    if not found:
        raise Untranslatable("there is no address")
    return found


def named(levels: Iterable[str]) -> str:
    """The folder of these levels. Raises Untranslatable where it cannot be one."""
    kept = [level for level in levels if level]
    if len(kept) > 1 and kept[0].upper() == INBOX:
        del kept[0]
    name = with_placeholders(".".join(kept))
    if not name or name.upper() == INBOX:
        return INBOX
    sound({"file": name})
    return name
