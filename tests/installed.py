"""The project as an administrator installs it, once per session, where any user may run it."""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def make_install(prefix: Path) -> None:
    """``make install PREFIX=prefix``, from another directory and with root's careful umask."""
    # Below `make test`, the outer make's flags and jobs are not this one's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-C", str(CHECKOUT), "install", f"PREFIX={prefix}"]
    done = subprocess.run(command, env=environment, umask=0o077, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def prefix() -> Path:
    """The directory that has bin/deliver, made at the first call. The fixture removes it."""
    # Not below pytest's own directory, which only its owner can enter: mail is delivered as other users.
    directory = Path(tempfile.mkdtemp(prefix="deliver-installed-", dir="/tmp"))
    directory.chmod(0o755)
    make_install(directory)
    return directory


@pytest.fixture(scope="session", name="installed")
def install_once() -> Iterator[Path]:
    """PREFIX: a directory with bin/deliver, bin/quarantine and lib/deliver, readable by everybody."""
    yield prefix()
    shutil.rmtree(prefix(), ignore_errors=True)  # again where two test modules imported this fixture
