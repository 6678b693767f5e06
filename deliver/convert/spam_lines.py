"""What asks our own scanner as well, where a filter looked at the X-Spam lines of the scanner before it."""

import re
from collections.abc import Callable, Iterator, Sequence

from deliver.convert.formulas import Formula, Leaf

REMOVED = (
    "where the site scans with spamd, arriving X-Spam lines are removed before rules are asked; "
    "what spamd says is asked with `spam` and `score`"
)


def spam_line(name: str, kind: str, keys: Sequence[str], warn: Callable[[str], object]) -> Iterator[Formula]:
    """What may stand beside a condition on an X-Spam line, to hold where our scanner says the same.

    ``name`` is in small letters. ``keys`` are globs where ``kind`` is "matches", else words. Where there is nothing to
    ask, ``warn`` is told why that matters.
    """
    words = [re.sub(r"\\(.)", r"\1", key) if kind == "matches" else key for key in keys]
    plain = [key.lower().strip("*^ ,") for key in words]
    if keys and name in {"x-spam-flag", "x-spam-status"} and all(key == "yes" for key in plain):
        yield Leaf("spam", True)
        return
    if keys and name == "x-spam-level":
        counts = [key.count("\\*") if kind == "matches" else len(key) for key in keys]
        if all(counts) and all(set(key) <= {"*", "\\"} for key in keys):
            yield Leaf("score", f">= {min(counts)}")
            return
    warn(REMOVED)
