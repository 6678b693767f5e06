"""The main job: the messages that `make demo` shows and that the tests send through the installed command."""

import base64
import io
import json
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import servers
from lmtp_client import Client
from scanned import EICAR, GTUBE

CHECKOUT = Path(__file__).resolve().parent.parent
RECIPIENT = "you@example.org"

# Of now: a message that came days ago is no longer deferred while a scanner fails (`defer-for`).
RECEIVED = time.strftime("Received: (qmail 4711 invoked by uid 0); %d %b %Y %H:%M:%S -0000\n", time.gmtime()).encode()


class Case(NamedTuple):
    """One message and what must become of it. ``where`` is a folder, "quarantine" or "" for nowhere.

    ``quota`` is the first line of maildirsize; ``on_top`` the framing that a program put before the message.
    """

    name: str
    message: bytes
    where: str
    code: int = 0
    quota: str = ""
    on_top: Callable[[dict[str, str]], bytes] = lambda _environment: b""


def message(subject: str, body: bytes = b"Hello.\n", *, headers: bytes = b"") -> bytes:
    """A plain message as qmail-queue hands it on."""
    return (
        RECEIVED
        + b"From: A Friend <friend@example.net>\nTo: <you@example.org>\n"
        + f"Subject: {subject}\n".encode()
        + b"Date: Sun, 22 Nov 2026 12:00:00 +0000\nMessage-ID: <"
        + subject.replace(" ", ".").encode()
        + b"@example.net>\n"
        + headers
        + b"\n"
        + body
    )


def zipped_virus() -> bytes:
    """EICAR in a zip in a MIME message."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("invoice.com", EICAR)
    return message(
        "the invoice",
        b"--x\nContent-Type: text/plain\n\nSee the attachment.\n\n"
        b'--x\nContent-Type: application/zip; name="invoice.zip"\nContent-Transfer-Encoding: base64\n'
        b'Content-Disposition: attachment; filename="invoice.zip"\n\n'
        + base64.encodebytes(archive.getvalue())
        + b"\n--x--\n",
        headers=b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="x"\n',
    )


# SpamAssassin's own rules give this 8 points or so: no Date, no Message-ID, a subject in capitals, a dear friend.
MODEST_SPAM = (
    RECEIVED
    + b'From: "DR. J. OKORO" <dr@example.net>\nTo: undisclosed-recipients:;\nSubject: URGENT PROPOSAL\n\n'
    + b"Dear Friend,\n\nI have a very good proposal for you. Please write to me soon.\n"
)


def _preline(environment: dict[str, str]) -> bytes:
    """preline(1) writes UFLINE, RPLINE and DTLINE before the message."""
    return (environment["UFLINE"] + environment["RPLINE"] + environment["DTLINE"]).encode()


def cases() -> list[Case]:
    """The dozen."""
    full = "2000S,1000C\n        1900            1\n"
    return [
        Case("ham", message("lunch tomorrow"), "INBOX"),
        Case("list mail", message("re: patches", headers=b"List-Id: The list <qmail.list.qmail.org>\n"), "Lists.qmail"),
        Case("spam", MODEST_SPAM, "Spam"),
        Case("spam above 12 (GTUBE)", message("an offer", GTUBE + b"\n"), ""),
        Case("virus (EICAR)", message("a file", EICAR + b"\n"), "quarantine"),
        Case("virus in a zip", zipped_virus(), "quarantine"),
        Case("400 KB", message("pictures", b"x" * 76 + b"\n" + b"0123456789abcdef" * 4 * 6400 + b"\n"), "INBOX"),
        Case("over quota", message("more mail", b"word " * 100 + b"\n"), "", 100, quota=full),
        Case("spam over quota", MODEST_SPAM, "quarantine", quota=full),
        Case(
            "a bounce",
            RECEIVED + b"From: MAILER-DAEMON@example.net\nTo: <you@example.org>\nSubject: failure notice\n"
            b"Date: Sun, 22 Nov 2026 12:00:00 +0000\nMessage-ID: <b@example.net>\n\n"
            b"Hi. This is the qmail-send program at example.net.\n\n<nobody@example.net>:\nNo such user.\n",
            "INBOX",
        ),
        Case(
            "forged X-Spam lines",
            message("trust me", headers=b"X-Spam-Flag: YES\nX-Spam-Status: Yes, score=99\n"),
            "INBOX",
        ),
        Case("a mail loop", message("round and round", headers=b"Delivered-To: you@example.org\n"), "", 100),
        Case("through preline", message("framed"), "INBOX", on_top=_preline),
    ]


class Answer(NamedTuple):
    """What the command answered: exit code, both outputs and the wall time in seconds."""

    code: int
    stdout: bytes
    stderr: bytes
    seconds: float


# For [users] command: everybody lives in the one home, and what follows "-" or "+" is an extension.
WHERE_USERS_ARE = '["/bin/sh", "-c", "case $0 in *[-+]*) exit 67; esac; echo {home}", "{{user}}"]'


class Home:
    """A user's home below ``directory`` with a Maildir and a configuration, and the command that delivers into it.

    ``service`` lets a service do the command's work; ``lmtp`` lets it be asked by LMTP instead.
    """

    def __init__(
        self,
        directory: Path,
        prefix: Path,
        configuration: str,
        *,
        quota: str = "",
        service: bool = False,
        lmtp: bool = False,
    ) -> None:
        self.path = directory
        self.maildir = directory / "Maildir"
        self.log = directory / "log"
        self.config = directory / "site.toml"
        self.socket = directory / "sock" if service else None
        self.serving: subprocess.Popen[bytes] | None = None
        self._prefix = prefix
        self._by_lmtp = lmtp
        for part in ("", "tmp", "new", "cur"):
            (self.maildir / part).mkdir(exist_ok=True)
        if "[service]" not in configuration and service:
            configuration += '\n[service]\nsocket = "/run/deliver/deliver.sock"\nlmtp = []\n'
        if lmtp:
            if "[service]" not in configuration:
                configuration += '\n[service]\nsocket = ""\nlmtp = ["unix:/run/deliver/lmtp.sock"]\n'
            configuration += f"\n[users]\ncommand = {WHERE_USERS_ARE.format(home=directory)}\n"
        configuration = configuration.replace("/run/deliver/deliver.sock", str(directory / "sock"))
        self.config.write_text(configuration.replace("/run/deliver/lmtp.sock", str(directory / "lmtp")))
        if quota:
            (self.maildir / "maildirsize").write_text(quota)
        own(directory)

    def environment(
        self, sender: str = "friend@example.net", recipient: str = RECIPIENT, **more: str
    ) -> dict[str, str]:
        """What qmail-local sets (qmail-command(8))."""
        local, _, host = recipient.partition("@")
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.path),
            "USER": "you",
            "SENDER": sender,
            "NEWSENDER": sender,
            "RECIPIENT": recipient,
            "LOCAL": local,
            "HOST": host,
            "EXT": "",
            "DTLINE": f"Delivered-To: {recipient}\n",
            "RPLINE": f"Return-Path: <{sender}>\n",
            "UFLINE": f"From {sender or 'MAILER-DAEMON'} Sun Nov 22 12:00:00 2026\n",
            "DELIVER_CONFIG": str(self.config),
            "DELIVER_SOCKET": str(self.socket or "/nonexistent"),
            **more,
        }

    def serve(self) -> bool:
        """Start `deliver serve` if it does not run yet; whether it does, which a wrong configuration forbids."""
        if self.serving is None:
            self.serving = subprocess.Popen(
                [str(self._prefix / "bin" / "deliver"), "serve", "--config", str(self.config)],
                cwd="/",
                stderr=subprocess.DEVNULL,
                **servers.unprivileged(),
            )
            door = self.socket or self.path / "lmtp"
            servers.wait_for(lambda: servers.listens(door) or self.serving is None or self.serving.poll() is not None)
        return self.serving.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the service, by its process id; its exit code."""
        if self.serving is None:
            return 0
        if self.serving.poll() is None:
            self.serving.send_signal(number)
        code = self.serving.wait(60)
        self.serving = None
        return code

    def deliver(
        self,
        content: bytes,
        *arguments: str,
        environment: dict[str, str] | None = None,
        stdin: str = "file",
        sigchld: str = "default",
        program: str = "deliver",
    ) -> Answer:
        """Run the installed command as an unprivileged user, as qmail-local would.

        ``stdin`` is "file" (qmail-local) or "pipe" (preline); ``sigchld`` "default", "blocked" or "ignored".
        """
        if self._by_lmtp:
            assert not arguments
            return self._give(content, environment or self.environment())
        if self.socket is not None:
            self.serve()

        def signals() -> None:
            if sigchld == "blocked":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            elif sigchld == "ignored":
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        command = [os.path.join(self._prefix, "bin", program), *arguments]
        settings: dict[str, Any] = {
            "cwd": self.path,
            "env": self.environment() if environment is None else environment,
            "preexec_fn": signals,
            "timeout": 120,
            "capture_output": True,
            **servers.unprivileged(),
        }
        begun = time.monotonic()
        if stdin == "pipe":
            done = subprocess.run(command, check=False, input=content, **settings)
        else:
            queue = self.path / "queue-file"
            queue.write_bytes(content)
            with queue.open("rb") as file:
                done = subprocess.run(command, check=False, stdin=file, **settings)
            queue.unlink()
        return Answer(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)

    def _give(self, content: bytes, environment: dict[str, str]) -> Answer:
        """By LMTP; the reply as the command would have said it (RFC 5321 section 4.2.1)."""
        assert self.serve()
        begun = time.monotonic()
        with Client(f"unix:{self.path / 'lmtp'}") as client:
            client.say("LHLO there")
            (reply,) = client.send(environment["SENDER"], [environment["RECIPIENT"]], content)
        code, status, words = reply.split(" ", 2)
        assert code[0] == status[0]
        if code == "250":
            return Answer(0, b"", b"", time.monotonic() - begun)
        line = f"{status} {words} (#{status})\n".encode()
        return Answer({"4": 75, "5": 100}[code[0]], line, b"", time.monotonic() - begun)

    def messages(self, folder: str = "INBOX") -> list[bytes]:
        """What is in a folder, new and read."""
        root = self.maildir if folder == "INBOX" else self.maildir / f".{folder}"
        return [path.read_bytes() for part in ("new", "cur") for path in sorted((root / part).glob("*"))]

    def held(self) -> list[dict[str, Any]]:
        """The envelopes in quarantine."""
        directory = self.maildir / "deliver" / "quarantine" / "held"
        return [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]

    def logged(self) -> list[dict[str, Any]]:
        """The log, a record a line."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def folders(self) -> list[str]:
        """The folders beside the inbox."""
        return sorted(path.name[1:] for path in self.maildir.glob(".[!.]*") if path.is_dir())

    def where(self) -> str:
        """Where the one message is that was delivered: a folder, "quarantine" or "". Quota warnings do not count."""
        stored = [(folder, one) for folder in ("INBOX", *self.folders()) for one in self.messages(folder)]
        places = [folder for folder, one in stored if not is_warning(one)]
        places += ["quarantine" for _ in self.held()]
        return ", ".join(places)


def is_warning(stored: bytes) -> bool:
    """Whether it is a quota warning, by the Message-Id that deliverquota(8) gives it, too."""
    return b".overquota@" in stored


def own(directory: Path) -> None:
    """Give a tree to the unprivileged user."""
    user = servers.unprivileged()
    if not user:
        return
    for root, names, files in os.walk(directory):
        for name in (".", *names, *files):
            os.chown(os.path.join(root, name), user["user"], user["group"], follow_symlinks=False)


def example_configuration(clamd: str, spamd: str, log: Path) -> str:
    """mailfilter.example.toml, with the private scanners' addresses and a log file."""
    text = (CHECKOUT / "mailfilter.example.toml").read_text()
    for old, new in (
        ('"unix:/run/clamav/clamd.ctl"', f'"{clamd}"'),
        ('"tcp:127.0.0.1:783"', f'"{spamd}"'),
        ('to = "syslog"', f'to = "{log}"'),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def tree(directory: Path) -> Iterator[str]:
    """Draw the files below a directory."""
    for path in sorted(directory.rglob("*")):
        depth = len(path.relative_to(directory).parts)
        size = f"  {path.stat().st_size} bytes" if path.is_file() else "/"
        yield "  " * depth + path.name + size
