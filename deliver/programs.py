"""Running a program with a message on its standard input: an injector, or one that the site names. Never a shell."""

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Sequence

from deliver.errors import Deferred
from deliver.values import Envelope


def run(
    argv: Sequence[str],
    chunks: Iterable[bytes],
    timeout: float,
    environment: dict[str, str],
    on_one: bytes | None = None,
) -> int:
    """Run ``argv``, for at most ``timeout`` seconds; its exit code. Raises Deferred where it gives none.

    ``on_one`` is read from descriptor 1; without it what the program prints is lost. Message and ``on_one`` are
    complete before it starts: of a pipe that ends because we died a program would take what it got for a message. So
    nothing breaks where it does not read to the end, and nobody waits for a daemon that it leaves behind.
    """
    import subprocess
    import tempfile

    with contextlib.ExitStack() as stack:
        try:
            message = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            _feed(message.fileno(), chunks)
            os.lseek(message.fileno(), 0, os.SEEK_SET)
            process = subprocess.Popen(
                argv,
                stdin=message,
                stdout=subprocess.DEVNULL if on_one is None else _pipe(on_one, stack),
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise Deferred(f"{argv[0]}: {error}") from error
    try:
        code = process.wait(timeout)
    except BaseException as error:
        _kill(process.pid)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise Deferred(f"{argv[0]} did not end within {timeout:g} s") from error
        raise
    if code < 0:
        raise Deferred(f"{argv[0]} was ended by signal {-code}")
    return code


def environment(envelope: Envelope | None = None) -> dict[str, str]:
    """What a program needs; the MTA's own environment holds a stranger's words (qmail-command(8)).

    With an envelope SENDER, RECIPIENT and EXTENSION are there, too, without control characters.
    """
    kept = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME", "TZ") if name in os.environ}
    said = {}
    if envelope is not None:
        said = {"SENDER": envelope.sender, "RECIPIENT": envelope.recipient, "EXTENSION": envelope.extension}
    clean = {name: re.sub(r"[\x00-\x1f\x7f]", "_", value) for name, value in said.items()}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept, **clean}


def _pipe(data: bytes, stack: contextlib.ExitStack) -> int:
    """The reading end of a pipe that holds ``data`` and then ends; a pipe takes 64 KiB unread (pipe(7))."""
    read_end, write_end = os.pipe()
    stack.callback(os.close, read_end)
    try:
        os.set_blocking(write_end, False)
        _feed(write_end, [data])
    finally:
        os.close(write_end)
    return read_end


def _feed(fd: int, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
