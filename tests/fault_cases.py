"""Deliveries that faults are tried on, and what must be true of a mailbox after any fault.

The scanners are scripted and the injectors are shell scripts: what is tested is the delivering process, many times.
"""

import hashlib
import json
import os
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import servers
from main_job import RECIPIENT, Home, is_warning, own

# Two writes of the product's, so that a second one can fail; a pipe that gives as much is spooled to disk.
LINES = b"".join(b"%06d The quick brown fox jumps over the lazy dog, and so on and so forth.\n" % n for n in range(4000))
HEADER = b"From: A Friend <friend@example.net>\nTo: <you@example.org>\nSubject: faults\nMessage-ID: <f@example.net>\n"
MESSAGE = HEADER + b"\n" + LINES
SPAM = HEADER + b"X-Spam-Status: Yes, score=8.0 required=5.0 tests=FAULTS\n\n" + LINES
TOP = f"Return-Path: <friend@example.net>\nDelivered-To: {RECIPIENT}\n".encode()
SPAMD_LINES = b"X-Spam-Status: No, score=1.0 required=5.0 tests=FAULTS\n"

SENDMAIL = """\
#!/bin/sh
set -e
cat >'{sent}/tmp/'$$
mv '{sent}/tmp/'$$ '{sent}/new/'$$
"""
QMAIL_QUEUE = """\
#!/bin/sh
set -e
exec 3<&1
cat >'{sent}/tmp/'$$
[ "$(tr '\\0' ' ' <&3)" = 'Ffriend@example.net Telsewhere@example.com  ' ] || exit 91
mv '{sent}/tmp/'$$ '{sent}/new/'$$
"""


class Scenario(NamedTuple):
    """One delivery. ``stored`` are the places it must reach, with the bytes there: folders, "quarantine" and "sent".

    ``configuration`` may name {clean}, {virus} and {ham}, the addresses of scanners that say so, and {home}. ``code``
    is the exit code without a fault. ``prepare`` makes the mailbox that it needs.
    """

    name: str
    configuration: str
    message: bytes
    stored: dict[str, bytes]
    code: int = 0
    stdin: str = "file"
    prepare: Callable[[Home], None] = lambda _home: None


def _lists(home: Home) -> None:
    (home.maildir / "subscriptions").write_bytes(b"V\t2\n\nLists\n")
    (home.maildir / "courierimapsubscribed").write_bytes(b"INBOX.Lists\n")


def _quota(limit: int) -> Callable[[Home], None]:
    def prepare(home: Home) -> None:
        """A message of 600,000 bytes, by its name, and a maildirsize of over 5120 bytes, which must be counted anew."""
        (home.maildir / "cur" / "1.M1P1.example,S=600000:2,S").write_bytes(b"old")
        changes = "      600000            1\n" + "           1            1\n          -1           -1\n" * 110
        (home.maildir / "maildirsize").write_text(f"{limit}S\n{changes}")

    return prepare


def _injector(name: str, script: str) -> Callable[[Home], None]:
    def prepare(home: Home) -> None:
        sent = home.path / "sent"
        for part in (sent, sent / "tmp", sent / "new", home.path / "bin"):
            part.mkdir()
        program = home.path / "bin" / name
        program.write_text(script.format(sent=sent))
        program.chmod(0o755)

    return prepare


FORWARD = "[[rule]]\nforward = 'elsewhere@example.com'\n"

SCENARIOS = [
    Scenario(
        "inbox",
        "[clamd]\naddress = '{clean}'\non-failure = 'defer'\n[spamd]\naddress = '{ham}'\non-failure = 'defer'\n"
        "max-size = '1 MiB'\n",
        MESSAGE,
        {"INBOX": TOP + b"X-Virus-Status: Clean\n" + SPAMD_LINES + MESSAGE},
    ),
    Scenario("from a pipe", "", MESSAGE, {"INBOX": TOP + MESSAGE}, stdin="pipe"),
    Scenario("new folder", "[spam]\ntrust-header = 'X-Spam-Status'\n", SPAM, {"Spam": TOP + SPAM}, prepare=_lists),
    Scenario("quota", "[quota]\nwarn-at = 90\n", MESSAGE, {"INBOX": TOP + MESSAGE}, prepare=_quota(1_000_000)),
    Scenario("over quota", "[quota]\n", MESSAGE, {"INBOX": TOP + MESSAGE}, 100, prepare=_quota(800_000)),
    Scenario(
        "quarantine",
        "[clamd]\naddress = '{virus}'\non-failure = 'defer'\n",
        MESSAGE,
        {"quarantine": b"Return-Path: <friend@example.net>\n" + MESSAGE},
    ),
    Scenario(
        "site quarantine",
        "[clamd]\naddress = '{virus}'\non-failure = 'defer'\n[quarantine]\ndirectory = '{home}/site'\n",
        MESSAGE,
        {"quarantine": b"Return-Path: <friend@example.net>\n" + MESSAGE},
    ),
    Scenario(
        "sendmail",
        FORWARD,
        MESSAGE,
        {"sent": TOP.splitlines(keepends=True)[1] + MESSAGE},
        prepare=_injector("sendmail", SENDMAIL),
    ),
    Scenario(
        "qmail-queue",
        FORWARD,
        MESSAGE,
        {"sent": TOP.splitlines(keepends=True)[1] + MESSAGE},
        prepare=_injector("qmail-queue", QMAIL_QUEUE),
    ),
    Scenario(
        "copy and file",
        "[[rule]]\ncopy = 'Copies'\nfile = 'Work'\nflag = ['seen']\n",
        MESSAGE,
        {"Copies": TOP + MESSAGE, "Work": TOP + MESSAGE},
    ),
]


class Scanners(NamedTuple):
    """Addresses of a clamd that finds nothing, of one that finds a virus, and of a spamd that finds no spam."""

    clean: str
    virus: str
    ham: str


@contextmanager
def scanners(directory: Path) -> Iterator[Scanners]:
    """Run the three."""

    def forget(peer: servers.Peer) -> None:
        peer.received = bytearray()  # thousands of deliveries come by

    spamd = b"SPAMD/1.5 0 EX_OK\r\nSpam: False ; 1.0 / 5.0\r\nContent-length: %d\r\n\r\n%s" % (
        len(SPAMD_LINES) + 1,
        SPAMD_LINES + b"\n",
    )
    with servers.all_of(
        servers.Scripted(directory, servers.read_stream, servers.answer(b"stream: OK\n"), forget),
        servers.Scripted(directory, servers.read_stream, servers.answer(b"stream: Faults FOUND\n"), forget),
        servers.Scripted(directory, servers.read_all, servers.answer(spamd), forget),
    ) as addresses:
        yield Scanners(*addresses)


class Place(Home):
    """A fresh mailbox in ``directory``, made for a scenario.

    A fault may take a wake-up from the event loop; then only the ``deadline`` ends the delivery. Where nothing of that
    kind is done it is long: a disk may take seconds to sync.
    """

    def __init__(
        self,
        directory: Path,
        prefix: Path,
        scenario: Scenario,
        scanning: Scanners | None = None,
        deadline: str = "3 s",
    ) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        fill = {"home": directory, **(scanning._asdict() if scanning else {})}
        text = f"deadline = '{deadline}'\n[log]\nto = '{directory}/log'\n" + scenario.configuration.format(**fill)
        super().__init__(directory, prefix, text)
        self.scenario = scenario
        self.command = [str(prefix / "bin" / "deliver")]
        self.queue = directory / "queue-file"
        self.queue.write_bytes(scenario.message)
        scenario.prepare(self)
        size = self.maildir / "maildirsize"
        self._limit = size.read_text().partition("\n")[0] if size.exists() else ""
        self._earlier = {path for path in directory.rglob("*") if path.is_file()}
        own(directory)

    def settings(self) -> dict[str, Any]:
        """How a program runs here as the MTA runs it, for subprocess; without its standard input."""
        path = f"{self.path}/bin:/usr/bin:/bin"
        return {"cwd": self.path, "env": self.environment(PATH=path), **servers.unprivileged()}

    @contextmanager
    def input(self) -> Iterator[IO[bytes]]:
        """The message, open: the queue's file itself, or a pipe from it."""
        with self.queue.open("rb") as file:
            if self.scenario.stdin == "file":
                yield file
                return
            with subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
                assert reader.stdout is not None
                yield reader.stdout

    def quarantine(self) -> Path:
        """Where this scenario's mail is held."""
        return self.path / "site" if "site" in self.scenario.name else self.maildir / "deliver" / "quarantine"

    def copies(self) -> dict[str, list[bytes]]:
        """The messages that are new, at each place where one is. A held one without its envelope is none."""
        found: dict[str, list[bytes]] = {}
        for folder in ("INBOX", *self.folders()):
            root = self.maildir if folder == "INBOX" else self.maildir / f".{folder}"
            for path in self._new_in(root / "new", root / "cur"):
                content = path.read_bytes()
                if not is_warning(content):
                    found.setdefault(folder, []).append(content)
        for path in self._new_in(self.quarantine() / "held"):
            envelope = json.loads(path.read_text())
            found.setdefault("quarantine", []).append((self.quarantine() / envelope["body"]).read_bytes())
        for path in self._new_in(self.path / "sent" / "new"):
            found.setdefault("sent", []).append(path.read_bytes())
        return found

    def left_over(self) -> list[str]:
        """The files in every tmp, and locks."""
        directories = [self.maildir, *(self.maildir / f".{name}" for name in self.folders()), self.quarantine()]
        paths = [path for directory in directories for path in self._new_in(directory / "tmp")]
        paths += [path for path in [self.maildir / "subscriptions.lock"] if path.exists()]
        return [str(path.relative_to(self.path)) for path in paths]

    def complaints(self, code: int, *, killed: bool = False, dirty: tuple[str, ...] = ()) -> list[str]:
        """What is wrong here after an exit code.

        ``killed``: a signal ended it. ``dirty``: files whose names end so may be left over.
        """
        wrong = []
        copies = self.copies()
        if code not in {0, 75, self.scenario.code} and not (killed and code in {-9, 137}):
            wrong.append(f"exit {code}")
        for place, contents in copies.items():
            expected = self.scenario.stored.get(place)
            if expected is None:
                wrong.append(f"a copy in {place}")
            wrong += [f"{len(content)} bytes in {place}" for content in contents if content != expected]
            if len(contents) > 1:
                wrong.append(f"{len(contents)} copies in {place}")
        if code == 0:
            wrong += [f"nothing in {place}" for place in self.scenario.stored if not copies.get(place)]
        if code == 100 and copies:
            wrong.append("given back and kept")
        wrong += [f"its name tells another size: {path.name}" for path in self._misnamed()]
        wrong += [f"not the digest: {path.name}" for path in self._wrong_digests()]
        if not killed:
            wrong += [f"left over: {path}" for path in self.left_over() if not path.endswith(dirty)]
        return wrong + self._shared_files()

    def _new_in(self, *directories: Path) -> list[Path]:
        found = [path for directory in directories if directory.is_dir() for path in directory.iterdir()]
        return sorted(path for path in found if path not in self._earlier)

    def _misnamed(self) -> Iterator[Path]:
        for root in (self.maildir, *(self.maildir / f".{name}" for name in self.folders())):
            for path in self._new_in(root / "new", root / "cur"):
                if path.name.partition(":")[0].rpartition(",S=")[2] != str(path.stat().st_size):
                    yield path

    def _wrong_digests(self) -> Iterator[Path]:
        for path in self._new_in(self.quarantine() / "messages"):
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                yield path

    def _shared_files(self) -> list[str]:
        """What IMAP servers share with us must be as it was or as it should be, never in between."""
        wrong = []
        allowed = {
            "subscriptions": {b"V\t2\n\nLists\n", b"V\t2\n\nLists\nSpam\n"},
            "courierimapsubscribed": {b"INBOX.Lists\n", b"INBOX.Lists\nINBOX.Spam\n"},
        }
        for name, texts in allowed.items():
            path = self.maildir / name
            if path in self._earlier and (not path.exists() or path.read_bytes() not in texts):
                wrong.append(f"{name} is broken")
        path = self.maildir / "maildirsize"
        if path in self._earlier:
            lines = path.read_text().split("\n") if path.exists() else []
            if lines[:1] != [self._limit] or lines[-1] or not all(len(line.split()) == 2 for line in lines[1:-1]):
                wrong.append("maildirsize is broken")
        return wrong


def described(complaints: dict[str, list[str]], limit: int = 15) -> str:
    """Faults and what they did, for a failing test."""
    shown = [f"{fault}: {'; '.join(wrong)}" for fault, wrong in list(complaints.items())[:limit]]
    return textwrap.indent("\n".join([f"{len(complaints)} faults did harm", *shown]), "  ")


def workers() -> int:
    """How many deliveries to try at the same time."""
    return max(1, len(os.sched_getaffinity(0)))
