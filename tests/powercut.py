"""A real ext4 or XFS whose power can be cut: a file on a loop device, and the ioctl that stops the file system.

XFS_IOC_GOINGDOWN (linux/fs/xfs/libxfs/xfs_fs.h), which ext4 has as EXT4_IOC_SHUTDOWN, with the flag NOLOGFLUSH: what is
in the page cache and in the journal's buffers is lost, as it is with the power. The next mount replays the journal.
"""

import fcntl
import os
import struct
import subprocess
from pathlib import Path
from typing import Self

import pytest
import servers

_GOINGDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NOLOGFLUSH = 2
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}  # bytes; mkfs.xfs wants 300 MB
_OPTIONS = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"]}


class Disk:
    """A mounted file system of ``kind`` ("ext4", "xfs") at ``path``. A context manager; skips where it cannot be."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.path = directory / kind
        self._image = directory / f"{kind}.img"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        program = servers.needs(f"mkfs.{self.kind}")
        with self._image.open("wb") as file:
            file.truncate(_SIZES[self.kind])
        subprocess.run([program, *_OPTIONS[self.kind], str(self._image)], check=True, capture_output=True)
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
        self.power_off()
        self.power_on()

    def power_off(self) -> None:
        """From now on nothing reaches the disk. Who still has files there open must end before `power_on`."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _GOINGDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(directory)

    def power_on(self) -> None:
        """Mount what the disk has: again while a mount namespace that somebody else has just made holds the dead one."""
        servers.wait_for(self._is_mounted_anew)

    def _is_mounted_anew(self) -> bool:
        subprocess.run(["umount", str(self.path)], check=True)
        done = self._mount()
        assert done.returncode == 0, done.stderr
        probe = self.path / "probe"
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            return False
        return True

    def _mount(self) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(["mount", "-o", "loop", self._image, self.path], check=False, capture_output=True)
