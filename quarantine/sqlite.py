"""An index of what is held, so that a hundred thousand messages can be searched at once.

It is only an index: whatever is in it was read from envelopes, and it can be deleted at any time. Deliveries do not
know of it; every command first brings it up to date with the directory, where the truth is.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from quarantine.store import Archive, Held

STATES = ("held", "releasing", "released")

_MIGRATIONS = (
    """CREATE TABLE envelope (
        id TEXT NOT NULL, state TEXT NOT NULL, recipient TEXT NOT NULL, sender TEXT NOT NULL, subject TEXT NOT NULL,
        reason TEXT NOT NULL, time REAL NOT NULL, size INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (id, state)
    );
    CREATE INDEX envelope_time ON envelope (time);
    CREATE INDEX envelope_body ON envelope (body);""",
    # Filled anew from the envelopes.
    """DELETE FROM envelope;
    ALTER TABLE envelope ADD COLUMN kind TEXT NOT NULL DEFAULT 'rule';""",
)
"""In this order, each once; PRAGMA user_version says how many were."""


class Row(NamedTuple):
    """What a list shows of an envelope. ``time`` is in seconds since the epoch, ``size`` in bytes."""

    id: str
    recipient: str
    sender: str
    subject: str
    reason: str
    time: float
    size: int


class Search(NamedTuple):
    """What to look for: globs as rules have them (only * and ? are special, a backslash escapes; case does not count),
    and ages in seconds. Empty and None mean anything.

    ``kind`` is one of KINDS.
    """

    recipient: str = ""
    sender: str = ""
    subject: str = ""
    reason: str = ""
    older: float | None = None
    newer: float | None = None
    kind: str = ""


class Index:
    """The index of one archive, in ``index.sqlite`` beside it. Raises sqlite3.Error where it cannot be used."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._path = os.path.join(archive.path, "index.sqlite")
        self.damaged: list[tuple[str, str]] = []
        try:
            self._database = _opened(self._path)
        except sqlite3.Error as error:
            self._database = self._another(error)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def update(self) -> None:
        """Bring it up to date: new envelopes are read, those that are gone are dropped. Raises OSError."""
        with self._current():
            pass

    def referenced(self) -> set[str]:
        """The messages that envelopes name, up to date. Raises OSError."""
        with self._current() as database:
            return {row[0] for row in database.execute("SELECT DISTINCT body FROM envelope")}

    def needed(self) -> set[str]:
        """The messages that must stay: all, while there is an envelope that cannot be read and may name any of them."""
        named = self.referenced()
        return named | set(self._archive.bodies()) if self.damaged else named

    @contextlib.contextmanager
    def _current(self) -> Iterator[sqlite3.Connection]:
        """The database, up to date as long as no other process can write to it."""
        try:
            self._update()
        except sqlite3.Error as error:
            self._database.close()
            self._database = self._another(error)
            self._update()
        with self._database:
            yield self._database

    def _update(self) -> None:
        """In a transaction from before the directory is read: else what has come since then, and another process has
        put into the index, would be taken out again, and its message would seem to be nobody's.
        """
        self.damaged.clear()
        self._database.execute("BEGIN IMMEDIATE")
        for state in STATES:
            there = set(self._archive.ids(state))
            known = {row[0] for row in self._database.execute("SELECT id FROM envelope WHERE state = ?", (state,))}
            self._database.executemany(
                "DELETE FROM envelope WHERE id = ? AND state = ?", [(id_, state) for id_ in known - there]
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO envelope VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._new(state, sorted(there - known)),
            )

    def _another(self, error: sqlite3.Error) -> sqlite3.Connection:
        """A new one for one that is damaged; in memory where none can be written.

        A full disk, or one that is read-only, must not hide what fills it.
        """
        if not isinstance(error, sqlite3.OperationalError):
            with contextlib.suppress(OSError, sqlite3.Error):
                for path in (f"{self._path}-journal", self._path):  # the old one's must not be rolled back into the new
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                return _opened(self._path)
        return _opened(":memory:")

    def search(self, what: Search, now: float, state: str = "held") -> Iterator[Row]:
        """The envelopes that match, oldest first."""
        clauses, values = ["state = ?"], [state]
        for field in ("recipient", "sender", "subject", "reason"):
            if wanted := getattr(what, field):
                clauses.append(f"folded({field}) GLOB ?")
                values.append(_glob(wanted.casefold()))
        if what.kind:
            clauses.append("kind = ?")
            values.append(what.kind)
        if what.older is not None:
            clauses.append(f"time <= {float(now - what.older)!r}")
        if what.newer is not None:
            clauses.append(f"time >= {float(now - what.newer)!r}")
        columns = ", ".join(Row._fields)
        query = f"SELECT {columns} FROM envelope WHERE {' AND '.join(clauses)} ORDER BY time, id"  # nosec B608
        for row in self._database.execute(query, values):
            yield Row(*row)

    def _new(self, state: str, ids: list[str]) -> Iterator[tuple[object, ...]]:
        for id_ in ids:
            try:
                held: Held = self._archive.read(id_, state)
                row = (
                    id_,
                    state,
                    held.recipient,
                    held.sender,
                    held.subject,
                    held.reason,
                    held.time,
                    held.size,
                    held.body,
                    held.kind,
                )
            except KeyError:
                continue  # gone since
            except (ValueError, OSError) as error:  # one that cannot be read must not hide the others
                self.damaged.append((id_, str(error)))
                continue
            yield row


def _glob(pattern: str) -> str:
    """As SQLite spells it, in which brackets are special and nothing escapes but brackets."""
    text = pattern.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # an argument may be no UTF-8
    return re.sub(r"(?s)\\(.)|\[", lambda found: f"[{found[1] or '['}]", text)


def _opened(path: str) -> sqlite3.Connection:
    before = os.umask(0o077)
    try:
        database = sqlite3.connect(path, timeout=30)
    finally:
        os.umask(before)
    try:
        # SQLite's own lower() knows ASCII alone.
        database.create_function("folded", 1, str.casefold, deterministic=True)
        done = database.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(_MIGRATIONS[done:], done + 1):
            database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    except BaseException:
        database.close()
        raise
    return database
