"""File systems of a few megabytes on a loop device, for what happens when they are full or read-only."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """An empty ext4 below `folder`; the test is skipped where this user may not mount one."""
    image, at = folder / "disk.img", folder / "disk"
    at.mkdir(parents=True)
    if os.geteuid() != 0 or shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("mounting a small disk needs root and mkfs.ext4")
    with image.open("wb") as stream:
        stream.truncate(mebibytes << 20)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    try:
        _run("mount", "-o", "loop", str(image), str(at))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine mounts no loop device: {error.stderr.strip()}")
    try:
        yield at
    finally:
        _run("umount", "--lazy", str(at))


def fill(disk: Path, leave: int = 0) -> Path:
    """Takes all but about so many bytes; remove the file to give them back."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as stream, suppress(OSError):
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize) > leave:
            stream.write(bytes(min(1 << 20, free - leave)))
    return path


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    _run("mount", "-o", "remount,ro", str(disk))
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", str(disk))


def _run(*command: str) -> None:
    path = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(command, env=path, capture_output=True, text=True, check=True)
