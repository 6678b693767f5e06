"""One recipient's mailbox for one delivery: the Maildir, its quota and its subscriptions together."""

import os
import re
from collections.abc import Callable, Iterable

from deliver import answered, keywords, quota, subscriptions
from deliver.maildir import Maildir, Prepared
from deliver.rules.model import folder_problem
from deliver.units import Limit
from deliver.values import INBOX, Answer

MOST_FOLDERS = 1000
"""Folders beside which strangers' names make no more: `file = "{subject}"` would else make one for each message."""


class Mailbox:
    """Raises Deferred where the Maildir cannot be opened.

    ``limit`` is the site's quota where no maildirsize says one; ``warn_at`` is in percent, ``warning`` the text of the
    warning, or a whole message that begins with header lines, as Courier's quotawarnmsg does; "" for no warning.
    """

    def __init__(self, path: str, limit: Limit | None, warn_at: int, warning: str) -> None:
        self._maildir = Maildir(path)
        self._warn_at = warn_at
        self._warning = warning
        self._prepared: list[Prepared] = []
        try:
            self._usage = quota.assess(self._maildir.fd, limit)
        except BaseException:
            self._maildir.close()
            raise

    def has_folder(self, name: str) -> bool:
        """Whether mail could be filed in the folder without making it."""
        return not folder_problem(name) and self._maildir.has_folder(name)

    def over_quota(self, sizes: list[tuple[str, int]]) -> str:
        """Why messages of these sizes (folder, bytes) do not fit, in words; "" if they do."""
        counted = [size for folder, size in sizes if quota.counts(folder)]
        if self._usage is None or not counted or not self._usage.over(sum(counted), len(counted)):
            return ""
        return self._usage.words()

    def prepare(self, folder: str, chunks: Iterable[bytes], flags: str = "") -> Prepared:
        """Write and sync a message; see Maildir.prepare."""
        prepared = self._maildir.prepare(folder, chunks, flags)
        self._prepared.append(prepared)
        return prepared

    def keywords(self, folder: str) -> dict[str, str]:
        """The letters of the IMAP keywords that a folder knows; see keywords.letters."""
        return keywords.letters(self._maildir.fd, "" if folder == INBOX else folder)

    def may_grow(self) -> bool:
        """Whether one folder more may be made for a name that a message brings."""
        return may_grow(self._maildir.fd)

    def answered(self, answer: Answer, now: float) -> str:
        """Why this automatic reply may not go out now, "" if it may; see answered.why_not."""
        return answered.why_not(self._maildir.fd, answer.key, answer.every, now)

    def answer(self, answer: Answer, now: float, send: Callable[[], object]) -> str:
        """Send it unless somebody else just has; see answered.once."""
        return answered.once(self._maildir.fd, answer.key, answer.every, now, send)

    def settle(self, unsubscribed: frozenset[str] = frozenset()) -> str:
        """After the commit: count what was stored, warn, subscribe to folders that we made.

        Never raises; says what went wrong, "" for nothing.
        """
        made = {prepared.folder for prepared in self._prepared if prepared.created}
        problems = [self._introduce(folder, subscribe=folder not in unsubscribed) for folder in sorted(made)]
        if self._usage is not None:
            stored = [prepared.size for prepared in self._prepared if prepared.name and quota.counts(prepared.folder)]
            problems.append(quota.record(self._maildir.fd, self._usage, sum(stored), len(stored)))
            if self._warning:
                quota.warn(self._maildir, self._usage, self._warn_at, _warning(self._warning))
        return "; ".join(filter(None, problems))

    def _introduce(self, folder: str, *, subscribe: bool) -> str:
        """Until it works, and then never again: a folder that its owner has unsubscribed from stays so."""
        problem = subscriptions.subscribe(self._maildir.fd, folder) if subscribe else ""
        if problem:
            return problem
        try:
            self._maildir.introduced(folder)
        except OSError as error:
            return f".{folder}/maildirfolder: {error}"
        return ""

    def close(self) -> None:
        """Let go of the directory."""
        self._maildir.close()


def may_grow(maildir: int) -> bool:
    """Whether an open Maildir has fewer than MOST_FOLDERS folders."""
    return sum(name.startswith(".") for name in os.listdir(maildir)) < MOST_FOLDERS


def _warning(text: str) -> str:
    if re.match(r"[!-9;-~]+:", text):
        return text
    head = (
        f"From: Mail delivery <postmaster@{os.uname().nodename}>\nSubject: Your mailbox is nearly full\n"
        "Auto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: 8bit\n\n"
    )
    return head + text
