"""A real ext4 or XFS whose power can be cut: a file on a loop device, and the ioctl that stops the file system.

XFS_IOC_GOINGDOWN (linux/fs/xfs/libxfs/xfs_fs.h), which ext4 has as EXT4_IOC_SHUTDOWN, with the flag NOLOGFLUSH: what is
in the page cache and in the journal's buffers is lost, as it is with the power. The next mount replays the journal.
"""

import fcntl
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
import servers

_GOINGDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NOLOGFLUSH = 2
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}  # bytes; mkfs.xfs wants 300 MB
_XFS_PACKAGES = ["xfsprogs", "libinih1", "liburcu8"]


class Disk:
    """A mounted file system of ``kind`` ("ext4", "xfs") at ``path``. A context manager; skips where it cannot be."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.path = directory / kind
        self._image = directory / f"{kind}.img"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        with self._image.open("wb") as file:
            file.truncate(_SIZES[self.kind])
        with _mkfs(self.kind) as (words, environment):
            subprocess.run([*words, str(self._image)], env=environment, check=True, capture_output=True)
        self.path.mkdir()
        done = self._mount()
        if done.returncode != 0:
            pytest.skip(f"cannot mount {self.kind} on a loop device: {done.stderr.decode().strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.path)], check=False, capture_output=True)
        self._image.unlink()

    def sync(self) -> None:
        """Everything so far survives."""
        subprocess.run(["sync", "-f", str(self.path)], check=True)

    def cut(self) -> None:
        """Cut the power and switch it on again."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _GOINGDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(directory)
        subprocess.run(["umount", str(self.path)], check=True)
        done = self._mount()
        assert done.returncode == 0, done.stderr

    def _mount(self) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(["mount", "-o", "loop", self._image, self.path], check=False, capture_output=True)


@contextmanager
def _mkfs(kind: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command that makes a file system and its environment; XFS's is fetched and unpacked where it is missing."""
    flags = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"]}[kind]
    if program := servers.find(f"mkfs.{kind}"):
        yield [program, *flags], dict(os.environ)
        return
    if kind != "xfs":
        pytest.skip(f"no mkfs.{kind} here")
    with tempfile.TemporaryDirectory() as directory:
        try:
            subprocess.run(
                ["apt-get", "-q", "download", *_XFS_PACKAGES], cwd=directory, check=True, capture_output=True, timeout=60
            )
            for package in Path(directory).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, directory], check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no mkfs.xfs here, and it cannot be fetched: {error}")
        unpacked = next(path for name in ("sbin", "usr/sbin") if (path := Path(directory, name, "mkfs.xfs")).exists())
        libraries = ":".join(str(path) for path in Path(directory).glob("usr/lib/*-linux-gnu"))
        yield [str(unpacked), *flags], {**os.environ, "LD_LIBRARY_PATH": libraries}
