"""IMAP keywords as Dovecot keeps them in a Maildir: the file dovecot-keywords maps letters of file names to names.

Dovecot alone writes that file (https://doc.dovecot.org, Maildir); a letter for a name that is not in it means nothing.
"""

import os
import re
import stat

_LINE = re.compile(r"([0-9]{1,2}) ([^ \x00-\x1f]+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LARGEST = 1 << 16  # bytes; 26 names


def letters(maildir: int, folder: str) -> dict[str, str]:
    """The letter of each keyword that a folder knows, by the keyword's name in small letters: IMAP ignores case.

    ``maildir`` is an open directory, ``folder`` "" for the inbox. A file that is missing, a link, not a plain file or
    over 64 KiB maps nothing.
    """
    try:
        home = os.open(f".{folder}" if folder else ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=maildir)
        try:
            file = os.open("dovecot-keywords", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=home)
        finally:
            os.close(home)
    except OSError:
        return {}
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return {}
        data = os.pread(file, _LARGEST + 1, 0)
    except OSError:
        return {}
    finally:
        os.close(file)
    if len(data) > _LARGEST:
        return {}
    found: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        entry = _LINE.fullmatch(line)
        if entry and int(entry[1]) < len(_LETTERS):
            found.setdefault(entry[2].lower(), _LETTERS[int(entry[1])])
    return found
