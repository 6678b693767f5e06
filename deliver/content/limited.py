"""Reading what a stranger sent with large libraries: in a child that has little memory, little time and no files.

The child is this Python, isolated, with one module of this program. It opens what it needs, gives up the right to open
anything more (``confine``), and only then looks at what it got: a library that is led astray finds nothing to harm.
"""

import os
import sys
from collections.abc import Sequence

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from deliver.content import {module}; {module}.main(sys.argv[2:])"
)
_BLOCK = 256 * 1024  # bytes


def run(
    module: str, arguments: Sequence[str], data: bytes, seconds: float, most: int, packages: bool = False
) -> tuple[bytearray, str]:
    """What ``main(arguments)`` of ``deliver.content.MODULE`` writes with ``data`` as its input; and why that is cut.

    It is ended after so many ``seconds``, or when it has written ``most`` bytes. With ``packages`` it may import what
    is installed beside this program. Never raises OSError.
    """
    import select
    import subprocess
    import time

    deadline = time.monotonic() + seconds
    place = os.path.abspath(f"{__file__}/../../..")
    start = [sys.executable, "-I", "-B", *(() if packages else ("-S",)), "-c", _START.format(module=module), place]
    output = bytearray()
    words = ""
    try:
        # A file, since the readers go back and forth in it; in memory, so that nothing is left behind.
        memory = os.memfd_create("deliver", os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(memory, view) :]
            os.lseek(memory, 0, os.SEEK_SET)
            child = subprocess.Popen(
                [*start, *arguments],
                stdin=memory,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        finally:
            os.close(memory)
    except OSError as error:
        return bytearray(), f"{module} cannot be run: {error.strerror}"
    with child:
        try:
            pipe = child.stdout.fileno() if child.stdout else -1
            waiting = select.poll()
            waiting.register(pipe, select.POLLIN)
            while True:
                if not waiting.poll(max(deadline - time.monotonic(), 0) * 1000):
                    words = "it takes too long"
                    break
                block = os.read(pipe, _BLOCK)
                output += block
                if not block:
                    break
                if len(output) > most:
                    words = "it holds too much"
                    break
        finally:
            child.kill()
            code = child.wait()
    return output, words or (f"its reader was ended by signal {-code}" if code < 0 else "")


def confine(seconds: float, memory: int, files: int = 0) -> None:
    """In the child, once all is there: nothing can be written, and so much time and ``memory`` (bytes).

    ``files`` are the files, pipes or sockets that may be open at a time beside the child's own three.
    """
    import resource

    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, 3 + files),
    ):
        resource.setrlimit(limit, (value, value))
