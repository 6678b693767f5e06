"""Sending a message on: through qmail's queue where qmail called us, else through sendmail. Never through a shell.

qmail-inject is never used: it writes header lines anew. Whatever the injector answers that is not 0 means "try again":
its own "permanent" may be ours to mend, and a message that another host refuses will be bounced by the queue.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence

from deliver.errors import Deferred

QMAIL = "/var/qmail/bin"
SENDMAIL = ("/usr/sbin", "/usr/lib")


class Forwarder:
    """Hands messages to the MTA.

    ``qmail`` says that qmail called us. ``path`` is the PATH that the MTA gave, searched before the usual places;
    ``rewrite`` is the command that makes a new envelope sender (SRS), empty to keep the old one. ``timeout`` in
    seconds is for one program.
    """

    def __init__(self, *, qmail: bool, path: str, rewrite: Sequence[str] = (), timeout: float = 60.0) -> None:
        self._qmail = qmail
        self._path = [entry for entry in path.split(":") if entry.startswith("/")]
        self._rewrite = tuple(rewrite)
        self._timeout = timeout

    def send(self, sender: str, address: str, chunks: Iterable[bytes]) -> None:
        """Queue one message for one address. Raises Deferred."""
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
                env=_environment(),
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
        import subprocess
        import threading

        read_end, write_end = os.pipe() if envelope is not None else (-1, -1)
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=read_end if envelope is not None else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            if write_end >= 0:
                os.close(write_end)
            raise Deferred(f"{argv[0]}: {error}") from error
        finally:
            if read_end >= 0:
                os.close(read_end)
        # A hanging injector would hold us in write(2); killing it from a timer is what ends that write.
        timer = threading.Timer(self._timeout, _kill, (process.pid,))
        timer.start()
        try:
            _feed(process.stdin.fileno() if process.stdin else -1, chunks)
            if process.stdin:
                process.stdin.close()
            if envelope is not None:
                with contextlib.suppress(BrokenPipeError):
                    os.write(write_end, envelope)
        except BaseException:
            _kill(process.pid)
            raise
        finally:
            if write_end >= 0:
                os.close(write_end)
            code = process.wait()
            timer.cancel()
        if code != 0:
            raise Deferred(f"{argv[0]} ended with {code}")


def _feed(fd: int, chunks: Iterable[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # its exit code tells why
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """What an injector needs; the MTA's own environment holds a stranger's words (qmail-command(8))."""
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "TZ") if name in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept}
