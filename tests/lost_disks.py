"""A disk that goes away while it is used: a folder shown through FUSE, whose every answer can become one error.

What the kernel then tells a process, it tells for a network file system that went away.
"""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("lost_disk_server.py")


class LostDisk:
    """`lose` makes everything asked of the folder `at` fail, after so many answers; `find` ends that."""

    def __init__(self, folder: Path) -> None:
        self.at, self.below, self._fault = folder / "disk", folder / "below", folder / "fault"

    def lose(self, code: int = errno.ESTALE, after: int = 0) -> None:
        aside = self._fault.with_suffix(".aside")
        aside.write_text(f"{code} {after}")
        aside.rename(self._fault)

    def find(self) -> None:
        self._fault.unlink(missing_ok=True)


@contextmanager
def lost_disk(folder: Path) -> Iterator[LostDisk]:
    """An empty one below `folder`; the test is skipped where this user may not mount one."""
    disk = LostDisk(folder)
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a disk that goes away needs root and /dev/fuse")
    disk.at.mkdir(parents=True)
    disk.below.mkdir()
    with subprocess.Popen(
        [sys.executable, "-S", str(SERVER), str(folder)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        if said != "mounted\n":
            pytest.skip(f"this machine mounts no FUSE: {said.strip()}")
        try:
            yield disk
        finally:
            disk.find()
            subprocess.run(["umount", "--lazy", str(disk.at)], check=False, capture_output=True)
            server.kill()
