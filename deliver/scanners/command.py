"""Viruses: run a scanner that is a program, and read its exit code.

The message lies in a file of its own while the program runs: in the recipient's Maildir, in tmp/. A named file, because
scanners refuse to follow links such as /dev/fd/3, go by a name's ending, or open it a second time; in tmp/, because
only the owner gets there (the program runs as the owner, too), it is the disk that the message will be stored on, no
IMAP server looks into it, and each of them removes what is older than 36 hours (maildir(5)), should we be killed.
"""

import asyncio
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from deliver.scanners.pool import BadAnswer, describe, printable
from deliver.values import Content, Envelope, Finding, Verdict

if TYPE_CHECKING:
    import subprocess

FILE = "{file}"
"""In an argument: the message's path. Without it the message is the program's standard input."""

OUTPUT_KEPT = 256 * 1024
"""Bytes of the program's output in which names are looked for. The rest is read and forgotten: an archive of 100,000
members makes some scanners print as many lines, and that must not be the way past them."""

_BLOCK = 64 * 1024  # bytes
_NAMES_LIMIT = 10
_NAME_LIMIT = 200  # characters of a virus's name
_QUOTED = 120  # characters of output that the log shows
# What a stranger wrote into the mail server's environment is nothing for a program (qmail-command(8)); and in another
# language than C's no pattern would fit.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Preset(NamedTuple):
    """A known program: its command, what its exit codes mean, and where in its output a virus's name stands.

    A code that is not there means that it failed.
    """

    command: tuple[str, ...]
    codes: Mapping[int, Finding]
    pattern: str


def _f_prot(code: int) -> Finding:
    """A sum: 1 infected, 2 suspicious, 8 skipped for its own limits, 64 could not be read (encrypted or broken)."""
    if code & 3:
        return Finding.VIRUS
    return Finding.SKIPPED if code and not code & ~(8 | 64) else Finding.FAILED


_CLAM_CODES = {0: Finding.CLEAN, 1: Finding.VIRUS}  # clamscan(1), clamdscan(1): RETURN CODES
_CLAM_PATTERN = r"(?m)^.*: (.+) FOUND$"

PRESETS: dict[str, Preset] = {
    "clamscan": Preset(("clamscan", "--no-summary", "--stdout", FILE), _CLAM_CODES, _CLAM_PATTERN),
    # clamd runs as another user, who does not get at the file.
    "clamdscan": Preset(("clamdscan", "--fdpass", "--no-summary", "--stdout", FILE), _CLAM_CODES, _CLAM_PATTERN),
    # http://www.f-prot.com/support/windows/fpwin_faq/310.html (the codes are the same on UNIX); --report: and no more.
    "f-prot": Preset(
        ("fpscan", "--report", FILE),
        {0: Finding.CLEAN, **{code: _f_prot(code) for code in range(1, 256)}},
        r"(?m)^\[Found [^\]]*\]\s+<([^ \t(>]+)",
    ),
    # As MIMEDefang reads them (interpret_uvscan_code): 12 tried to clean and could not, 13 found. 19, found and
    # cleaned, is from memory. Every other code is an error of its own, or not about the file.
    "uvscan": Preset(
        ("uvscan", "--secure", "--mime", "--noboot", FILE),
        {0: Finding.CLEAN, 12: Finding.VIRUS, 13: Finding.VIRUS, 19: Finding.VIRUS},
        r"(?m)Found(?:: | the | (?:virus|trojan) or variant )(.+?)(?: virus| trojan| NOT a virus)?(?: ?!+)?\r?$",
    ),
    # As documented for sweep 4.20, and as MIMEDefang reads them: 1 interrupted, 2 an error, 3 found. It makes an error
    # of an encrypted or broken attachment as well.
    "savscan": Preset(
        ("savscan", "-ss", "-nb", "-f", "-all", "-archive", "-mime", FILE),
        {0: Finding.CLEAN, 3: Finding.VIRUS},
        r"(?m)^>>> Virus(?: fragment)? '([^']+)' found",
    ),
}


class Command:
    """One program, run for each message.

    ``name`` is the scanner's in the configuration. ``command`` is an argument list. ``codes`` says what its exit codes
    mean: CLEAN, VIRUS, SKIPPED; any other is FAILED. ``pattern`` is an RE2 expression for the viruses' names in its
    output, their name its first group, if it has one; "" for none. ``max_size`` is in bytes, for ``scan_all``;
    ``timeout`` is in seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        codes: Mapping[int, Finding],
        pattern: str,
        max_size: int,
        timeout: float,
    ) -> None:
        self.name = name
        self.max_size = max_size
        self._command = tuple(command)
        self._codes = codes
        self._pattern = pattern
        self._timeout = timeout

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """Return CLEAN, VIRUS, SKIPPED or FAILED, as the exit code says."""
        return await asyncio.to_thread(self._scan, content, envelope.maildir)

    def _scan(self, content: Content, maildir: str) -> Verdict:
        deadline = time.monotonic() + self._timeout
        try:
            code, output = self._run(content, maildir, deadline)
        except BadAnswer as error:
            return self._failed(error.words, str(error))
        except TimeoutError:
            return self._failed("did not answer in time", f"not within {self._timeout:g} s")
        except OSError as error:
            return self._failed("could not be run", describe(error))
        finding = self._codes.get(code, Finding.FAILED)
        said = f'exit code {code}: "{printable(output[:_QUOTED].decode("latin-1"), _QUOTED)}"'
        match finding:
            case Finding.VIRUS:
                return Verdict(self.name, finding, names=names(self._pattern, output) or ("unnamed",))
            case Finding.CLEAN:
                return Verdict(self.name, finding)
            case Finding.SKIPPED:
                return Verdict(self.name, finding, reason=f"{self.name} could not read all of it", detail=said)
            case _:
                return self._failed("reported an error", said)

    def _failed(self, words: str, detail: str) -> Verdict:
        return Verdict(self.name, Finding.FAILED, reason=f"{self.name} {words}", detail=detail)

    def _run(self, content: Content, maildir: str, deadline: float) -> tuple[int, bytes]:
        """The exit code and the output; raises BadAnswer, TimeoutError or another OSError."""
        import subprocess

        path = os.path.join(maildir, "tmp", f"{time.time():.6f}.P{os.getpid()}.{os.urandom(8).hex()}.eml")
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for piece in content.chunks():
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            os.lseek(fd, 0, os.SEEK_SET)
            named = any(FILE in part for part in self._command)
            source, sink = os.pipe()
            try:
                try:
                    process = subprocess.Popen(
                        [part.replace(FILE, path) for part in self._command],
                        stdin=subprocess.DEVNULL if named else fd,
                        stdout=sink,
                        stderr=sink,
                        cwd="/",
                        env=_ENVIRONMENT,
                        start_new_session=True,
                    )
                finally:
                    os.close(sink)
                code, output = _watch(process, source, deadline)
            finally:
                os.close(source)
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):  # what watches every file may have taken it away
                os.unlink(path)
        if code < 0:
            raise BadAnswer(f"ended by signal {-code}", "ended by a signal")
        return code, output


def _watch(process: "subprocess.Popen[bytes]", source: int, deadline: float) -> tuple[int, bytes]:
    """Read what the process says until it ends, and end it and all it has started: at the latest by the deadline.

    Nobody waits for the end of its output: a child that it left behind may hold that open for ever.
    """
    output = bytearray()
    ended = -1
    try:
        ended = os.pidfd_open(process.pid)
        os.set_blocking(source, False)
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)
        waiting.register(source, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            ready = dict(waiting.poll(max(0.0, left) * 1000))
            if source in ready and not _keep(source, output):
                waiting.unregister(source)
            if ended in ready:
                break
            if left <= 0:
                raise TimeoutError
        for _ in range(OUTPUT_KEPT // _BLOCK):  # what is left in the pipe, but not all that a child goes on to say
            if not _keep(source, output):
                break
    finally:
        # Before it is waited for: until then nobody else can get its number.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if ended >= 0:
            os.close(ended)
    return process.returncode, bytes(output)


def _keep(source: int, output: bytearray) -> bool:
    """Read once, and keep it while there is room; False where there is nothing to read now, or never more."""
    try:
        data = os.read(source, _BLOCK)
    except BlockingIOError:
        return False
    output += data[: OUTPUT_KEPT - len(output)]
    return bool(data)


def names(pattern: str, output: bytes) -> tuple[str, ...]:
    """The viruses that the output names: printable, each once, ten at most."""
    if not pattern:
        return ()
    import re2  # a virus is rare; and an expression that backtracks could take for ever over what a stranger sent

    options = re2.Options()
    options.log_errors = False
    found = re2.compile(pattern, options).finditer(output.decode("latin-1"))
    said = dict.fromkeys(printable((match[1] if match.re.groups else match[0]) or "", _NAME_LIMIT) for match in found)
    return tuple(name for name in said if name)[:_NAMES_LIMIT]
