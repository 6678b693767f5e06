"""Real IMAP servers, private to the tests and without a daemon: Dovecot and Courier-IMAP over standard input.

Both programs take a user as logged in when they are started by hand. Run by root, they are the unprivileged user's.
Courier-IMAP is downloaded and unpacked, never installed: its package conflicts with Dovecot's.
"""

import contextlib
import functools
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import servers

_ANSWERING = 20.0  # seconds


class Shown(NamedTuple):
    """A message as an IMAP server shows it. ``internal`` is INTERNALDATE; ``content`` has CRLF line ends."""

    content: bytes
    size: int
    flags: set[str]
    internal: str


class Session:
    """One IMAP session (RFC 3501), as far as tests need it. ``prefix`` stands before the names of all folders."""

    def __init__(self, process: "subprocess.Popen[bytes]", prefix: str) -> None:
        self._process = process
        self._prefix = prefix
        self._number = 0
        self._buffer = b""
        self.greeting = self._line()

    def command(self, words: str) -> list[bytes]:
        """The untagged answers to a command, each with its literals; AssertionError unless it ends in OK."""
        self._number += 1
        tag = b"t%d " % self._number
        assert self._process.stdin is not None
        self._process.stdin.write(tag + words.encode() + b"\r\n")
        self._process.stdin.flush()
        answers = []
        while not (line := self._line()).startswith(tag):
            while found := re.search(rb"\{(\d+)\}\r\n\Z", line):
                line += self._exactly(int(found[1])) + self._line()
            answers.append(line)
        assert line.startswith(tag + b"OK"), (words, line)
        return answers

    def folders(self, command: str = "LIST") -> list[str]:
        """The folders' names, as we write them; with "LSUB", the subscribed ones."""
        found = [re.search(rb'"?([^" ]+)"?\r\n\Z', line) for line in self.command(f'{command} "" "*"')]
        return sorted(one[1].decode().removeprefix(self._prefix) for one in found if one)

    def subscribe(self, folder: str) -> None:
        """SUBSCRIBE."""
        self.command(f"SUBSCRIBE {self._prefix}{folder}")

    def unsubscribe(self, folder: str) -> None:
        """UNSUBSCRIBE."""
        self.command(f"UNSUBSCRIBE {self._prefix}{folder}")

    def messages(self, folder: str = "INBOX") -> list[Shown]:
        """What is in a folder; nothing is marked as read."""
        name = folder if folder == "INBOX" else self._prefix + folder
        count = next(int(line.split()[1]) for line in self.command(f"SELECT {name}") if line.endswith(b" EXISTS\r\n"))
        if not count:
            return []
        return [_shown(line) for line in self.command("FETCH 1:* (RFC822.SIZE FLAGS INTERNALDATE BODY.PEEK[])") if b" FETCH (" in line]

    def quota(self, folder: str = "INBOX") -> dict[str, tuple[int, int]]:
        """GETQUOTAROOT: used and limit of STORAGE (in units of 1024 bytes) and MESSAGE."""
        answers = b"".join(self.command(f"GETQUOTAROOT {folder}"))
        return {kind.decode(): (int(used), int(limit)) for kind, used, limit in re.findall(rb"(STORAGE|MESSAGE) (\d+) (\d+)", answers)}

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _ANSWERING)
        data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
        assert data, f"the IMAP server {'closed' if ready else 'hangs'}; it had said {self._buffer!r}"
        self._buffer += data


def _shown(line: bytes) -> Shown:
    head, _, rest = line.partition(b"BODY[] ")
    if literal := re.match(rb"\{(\d+)\}\r\n", rest):
        content = rest[literal.end() : literal.end() + int(literal[1])]
    else:
        content = rest.partition(b'"')[2].rpartition(b'"')[0]  # Dovecot writes an empty message as ""
    size, flags, internal = (re.search(pattern, head) for pattern in (rb"RFC822\.SIZE (\d+)", rb"FLAGS \(([^)]*)\)", rb'INTERNALDATE "([^"]+)"'))
    assert size
    assert flags
    assert internal
    return Shown(content, int(size[1]), {flag for flag in flags[1].decode().split() if flag != "\\Recent"}, internal[1].decode())


Server = Callable[[Path], contextlib.AbstractContextManager[Session]]


@contextlib.contextmanager
def _session(command: list[str], home: Path, environment: dict[str, str], prefix: str) -> Iterator[Session]:
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        command, cwd=home, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **servers.unprivileged()
    ) as process:
        try:
            session = Session(process, prefix)
            yield session
            session.command("LOGOUT")
        finally:
            process.kill()


@contextlib.contextmanager
def dovecot(home: Path) -> Iterator[Session]:
    """A session of Dovecot's with home/Maildir, with the quota of its maildirsize."""
    program = servers.needs("/usr/lib/dovecot/imap")
    user = servers.unprivileged()
    name = str(user.get("user", os.geteuid()))
    with servers.scratch() as directory:
        settings = f"""
            base_dir = {directory}/run
            state_dir = {directory}/state
            log_path = {directory}/log
            protocols = imap
            ssl = no
            first_valid_uid = 1
            mail_location = maildir:~/Maildir
            mail_plugins = quota
            namespace inbox {{
              inbox = yes
              separator = .
            }}
            plugin {{
              quota = maildir:User quota
            }}
            protocol imap {{
              mail_plugins = $mail_plugins imap_quota
            }}
        """
        configuration = directory / "dovecot.conf"
        configuration.write_text(settings)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "USER": name}
        with _session([program, "-c", str(configuration)], home, environment, "") as session:
            yield session


@functools.cache
def _courier_root() -> Path:
    """Where Courier-IMAP is unpacked; the fixture ``courier`` removes it. Skips, or fails under CI, if it cannot be got."""
    directory = Path(tempfile.mkdtemp(prefix="deliver-courier-", dir="/tmp"))
    directory.chmod(0o755)
    command = f"cd {directory} && apt-get -q download courier-imap && dpkg-deb -x courier-imap_*.deb ."
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode == 0:
        return directory
    shutil.rmtree(directory)
    reason = f"courier-imap cannot be downloaded (apt-get update): {done.stderr.strip()[-300:]}"
    raise (pytest.fail.Exception if os.environ.get("CI") == "true" else pytest.skip.Exception)(reason)


@pytest.fixture(scope="session", name="courier")
def unpack_courier() -> Iterator[Server]:
    """Sessions of Courier-IMAP's with home/Maildir. Its libraries are those of courier-base."""
    servers.needs("deliverquota.courier")
    root = _courier_root()

    @contextlib.contextmanager
    def courier(home: Path) -> Iterator[Session]:
        environment = {
            "AUTHENTICATED": "tester",
            "IMAP_MAILBOX_SANITY_CHECK": "0",
            "IMAP_CAPABILITY": "IMAP4rev1 UIDPLUS CHILDREN NAMESPACE SORT QUOTA IDLE",
            "IMAP_TRASHFOLDERNAME": "Trash",
            "IMAP_ENHANCEDIDLE": "0",
            "IMAP_USELOCKS": "1",
            "IMAP_CHECK_ALL_FOLDERS": "0",
            "HOSTNAME": "test.example",
            "PATH": "/usr/bin:/bin",
        }
        with _session([str(root / "usr" / "bin" / "imapd"), "Maildir"], home, environment, "INBOX.") as session:
            yield session

    yield courier
    shutil.rmtree(root, ignore_errors=True)
    _courier_root.cache_clear()


@pytest.fixture(params=["dovecot", "courier"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the two."""
    return dovecot if request.param == "dovecot" else request.getfixturevalue("courier")  # type: ignore[no-any-return]


def internal_date(seconds: float) -> str:
    """RFC 3501 section 9, date-time."""
    return time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime(seconds))
