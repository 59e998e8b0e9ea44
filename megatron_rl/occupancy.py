"""One run in a folder at a time: who trains there holds a lock on it, which ends with its process however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from megatron_rl.spec.schema import SpecError

FILE: Final = ".occupied"
"""The locked file; it says `machine process` of who holds it."""
LEASE_S: Final = 120.0
"""How long a file system shared by machines may keep the lock of one that died."""
LOOK_S: Final = 1.0
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def alone_in(folder: Path, lease_s: float = LEASE_S) -> Iterator[None]:
    """Holds the folder; SpecError where another process does.

    A holder on another machine may have died with it and is waited for, a holder on this one lives.
    """
    path, machine = folder / FILE, socket.gethostname()
    ends, is_told = time.monotonic() + lease_s, False
    while (held := _taken(path, f"{machine} {os.getpid()}")) is None:
        holder = _holder(path)
        if holder.partition(" ")[0] == machine or time.monotonic() >= ends:
            raise SpecError(
                f"another process trains in {folder} (machine and process: {holder or 'unknown'}); "
                "wait for it or end it, or give this run another run.name."
            )
        if not is_told:
            print(f"{folder} is held by {holder}, waiting up to {lease_s:g} s for it", file=sys.stderr, flush=True)
        is_told = True
        time.sleep(min(LOOK_S, lease_s))
    try:
        yield
    finally:
        with suppress(OSError):  # a disk that takes no more leaves the file, which nobody holds
            path.unlink(missing_ok=True)
            folder.rmdir()  # only where nothing was begun in it
        with suppress(OSError):  # a disk that is gone says so once more
            os.close(held)


def _taken(path: Path, who: str) -> int | None:
    """A descriptor that holds the lock and says who does; None where another process does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _locked(path)
        if held is not None:
            os.ftruncate(held, 0)
            os.write(held, f"{who}\n".encode())
        return held
    except OSError as error:
        raise OSError(f"{path} cannot be locked for this run ({error.strerror}); see to its disk.") from error


def _locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Where the other one ended while we asked, what was opened has its name no more.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        print(
            f"{path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second process "
            "from training in it",
            file=sys.stderr,
        )
        return descriptor
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
