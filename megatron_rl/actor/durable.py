"""Folders that are whole and on disk before they have their name, and what puts them there."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from megatron_rl.spec.schema import SpecError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PIECE = 1 << 17
"""Most bytes that one write should hand over, as `cp` does: for larger ones the system takes larger pages, which a
virtual machine may have handed back to its host, and waiting for those costs several times what the copy does."""

PAUSE_S = 0.1
"""Between two looks of `flushing` at its folder."""


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder beside the given one that takes its place, whole and on disk, when the block ends well.

    It vanishes otherwise; a process that dies leaves it aside, under a name that nothing reads, to the next one.
    """
    folder = Path(os.path.abspath(folder))  # a name that ends in ".." has no neighbours
    aside, old = (folder.with_name(f".{folder.name}.{role}") for role in ("writing", "old"))
    with _alone_in(aside, folder):
        if old.exists() and not folder.exists():
            old.rename(folder)  # a process died between the two renames below
        shutil.rmtree(old, ignore_errors=True)
        try:
            with flushing(aside):
                yield aside
            sync_tree(aside)
            if folder.exists():
                folder.rename(old)
            aside.rename(folder)
        except BaseException:
            shutil.rmtree(aside)
            raise
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone_in(aside: Path, folder: Path) -> Iterator[None]:
    """The empty folder aside, which no other process writes; SpecError where one does."""
    aside.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Where the other one ended while we asked, what was opened has its name by now, or none.
            is_ours = os.path.samestat(os.fstat(descriptor), os.stat(aside))
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:
            raise SpecError(f"another process is writing {folder}; wait for it, or name another folder.")
        for leftover in aside.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
    finally:
        os.close(descriptor)


@contextmanager
def flushing(folder: Path) -> Iterator[None]:
    """Within, what is written below the folder goes to disk as it comes, so that little is left to wait for.

    An error of the disk is told to whoever syncs first, so it is raised here.
    """
    ended = Event()
    with ThreadPoolExecutor(1) as other:
        flushed = other.submit(_flush, folder, ended)
        try:
            yield
        finally:
            ended.set()
    flushed.result()


class InPieces(FileIO):
    """A file whose writes are short; whoever buffers it writes the rest again."""

    def write(self, content: "ReadableBuffer", /) -> int:
        return super().write(memoryview(content)[:PIECE])


def sync_tree(folder: Path) -> None:
    """Puts everything below a folder on disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Puts a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(folder: Path, ended: Event) -> None:
    synced: dict[Path, tuple[int, int]] = {}
    while not ended.wait(PAUSE_S):
        for path in folder.rglob("*"):
            try:
                found = path.stat()
                # Whoever writes a file from both ends does not make it any larger.
                if synced.get(path) != (found.st_size, found.st_mtime_ns):
                    synced[path] = (found.st_size, found.st_mtime_ns)
                    sync(path)
            except FileNotFoundError:
                continue  # renamed since it was listed; `replacing` syncs all in the end
