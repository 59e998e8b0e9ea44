"""One run in a folder at a time: who trains there holds a lock on it, which ends with its process however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from megatron_rl.spec.schema import SpecError

FILE: Final = ".occupied"
"""The locked file; it says `machine process` of who holds it, then `job attempt` where a scheduler started it."""
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How a holder shows that it lives, and how long one that may not is waited for."""

    beat_s: float = 5.0
    """The holder touches the file so often."""
    silence_s: float = 20.0
    """An earlier attempt of one's own job that has not done so for so long is over, whatever its lock says."""
    lease_s: float = 120.0
    """How long a file system shared by machines may keep the lock of one that died."""
    look_s: float = 1.0


PATIENCE: Final = Patience()


class Attempt(NamedTuple):
    """Which try of a scheduler's job this is: Attempt("4711", 2) begins once Attempt("4711", 1) was ended."""

    job: str
    number: int


class _Holder(NamedTuple):
    """What the file says, and when it was touched."""

    words: tuple[str, ...]
    touched: int

    @property
    def is_here(self) -> bool:
        return self.words[:1] == (socket.gethostname(),)

    def is_before(self, attempt: Attempt | None) -> bool:
        if attempt is None or self.words[2:3] != (attempt.job,) or not self.words[-1].isdecimal():
            return False
        return int(self.words[-1]) < attempt.number


@contextmanager
def alone_in(folder: Path, attempt: Attempt | None = None, patience: Patience = PATIENCE) -> Iterator[None]:
    """Holds the folder; SpecError where another process does.

    A holder on another machine may have died with it and is waited for, a holder on this one lives.
    """
    path, ended = folder / FILE, threading.Event()
    held = _waited_for(path, attempt, patience)
    threading.Thread(target=_beat, args=(path, held, patience, ended), name="occupancy", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with suppress(OSError):  # a disk that takes no more leaves the file, which nobody holds
            if not _is_given_away(path, held):
                path.unlink(missing_ok=True)
                folder.rmdir()  # only where nothing was begun in it
        with suppress(OSError):  # a disk that is gone says so once more
            os.close(held)


def _waited_for(path: Path, attempt: Attempt | None, patience: Patience) -> int:
    who = " ".join(map(str, (socket.gethostname(), os.getpid(), *(attempt or ()))))
    begun = heard = time.monotonic()
    last = None
    while (held := _taken(path, who)) is None:
        holder, now = _holder(path), time.monotonic()
        said = " ".join(holder.words[:2])
        if holder.is_here or now - begun >= patience.lease_s:
            raise SpecError(
                f"another process trains in {path.parent} (machine and process: {said or 'unknown'}); wait for it or "
                f"end it, or give this run another run.name; if that machine is gone for good, remove {path}."
            )
        if last is None:
            print(f"{path.parent} is held by {said}, waiting up to {patience.lease_s:g} s", file=sys.stderr, flush=True)
        if holder != last:
            heard, last = now, holder
        if holder.is_before(attempt) and now - heard >= patience.silence_s:
            print(f"{said}, an earlier attempt of this job, is silent and over", file=sys.stderr, flush=True)
            path.unlink(missing_ok=True)  # its lock goes with it, and it ends itself should it ever wake
            continue
        time.sleep(min(patience.look_s, patience.silence_s, patience.lease_s))
    return held


def _beat(path: Path, held: int, patience: Patience, ended: threading.Event) -> None:
    """Shows that the holder lives, and ends it where the folder was given to another in the meantime."""
    while not ended.wait(patience.beat_s):
        if _is_given_away(path, held) and not ended.is_set():
            print(f"{path.parent} was given to another process; this one ends", file=sys.stderr, flush=True)
            os._exit(1)
        with suppress(OSError):  # a disk that is away for a moment
            os.utime(held)


def _is_given_away(path: Path, held: int) -> bool:
    """Whether the lock there is another's; one that was removed is nobody's yet, and of a disk that is away none is."""
    try:
        there = path.stat()
    except OSError:
        return False
    try:
        return not os.path.samestat(os.fstat(held), there)
    except OSError as error:
        return error.errno == errno.ESTALE  # what a network's disk says of a file that another machine removed


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


def _holder(path: Path) -> _Holder:
    try:
        return _Holder(tuple(path.read_text(encoding="utf-8", errors="replace").split()), path.stat().st_mtime_ns)
    except FileNotFoundError:
        return _Holder((), 0)
