"""Sending a message on: through qmail's queue where qmail called us, else through sendmail. Never through a shell.

qmail-inject is never used: it writes header lines anew. Whatever the injector answers that is not 0 means "try again":
its own "permanent" may be ours to mend, and a message that another host refuses will be bounced by the queue.
"""

import os
from collections.abc import Iterable, Sequence

from deliver import programs
from deliver.errors import Deferred

QMAIL = "/var/qmail/bin"
SENDMAIL = ("/usr/sbin", "/usr/lib")


class Forwarder:
    """Hands messages to the MTA.

    ``qmail`` says that qmail called us. ``path`` is the PATH that the MTA gave, searched before the usual places;
    ``rewrite`` is the command that makes a new envelope sender (SRS), empty to keep the old one; ``sender`` is the new
    one where the MTA has said it. ``timeout`` in seconds is for one program.
    """

    def __init__(
        self, *, qmail: bool, path: str, rewrite: Sequence[str] = (), sender: str | None = None, timeout: float = 60.0
    ) -> None:
        self._sender = sender
        self._qmail = qmail
        self._path = [entry for entry in path.split(":") if entry.startswith("/")]
        self._rewrite = tuple(rewrite)
        self._timeout = timeout

    def send(self, sender: str, address: str, chunks: Iterable[bytes]) -> None:
        """Queue one message for one address. Raises Deferred."""
        if self._sender is not None and sender:  # never for the null sender: a reply must not be answered
            sender = self._sender
        if self._rewrite and sender:
            sender = self._rewritten(sender)
        queue = self._find("qmail-queue", QMAIL) if self._qmail else ""
        if queue:
            envelope = b"F" + os.fsencode(sender) + b"\0T" + os.fsencode(address) + b"\0\0"
            self._run([queue], chunks, envelope)
            return
        program = self._find("sendmail", *SENDMAIL)
        if not program:
            raise Deferred("no sendmail and no qmail-queue was found", "4.3.5 Mail system is not configured")
        self._run([program, "-i", "-f", sender or "<>", "--", address], chunks, None)

    def _find(self, program: str, *places: str) -> str:
        for place in (*self._path, *places):
            candidate = os.path.join(place, program)
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                return candidate
        return ""

    def _rewritten(self, sender: str) -> str:
        import subprocess  # late: few messages are sent on

        argv = [part.replace("{sender}", sender) for part in self._rewrite]
        if argv == list(self._rewrite):
            argv.append(sender)
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                env=programs.environment(),
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Deferred(f"[forward] sender: {error}") from error
        line = done.stdout.decode("utf-8", "surrogateescape").strip()
        if not line or "\n" in line:
            raise Deferred(f"[forward] sender: {argv[0]} printed {line!r}, not one address")
        return line

    def _run(self, argv: list[str], chunks: Iterable[bytes], envelope: bytes | None) -> None:
        """Run an injector with the message on descriptor 0 and, for qmail-queue(8), the envelope on 1."""
        if code := programs.run(argv, chunks, self._timeout, programs.environment(), envelope):
            raise Deferred(f"{argv[0]} ended with {code}")
