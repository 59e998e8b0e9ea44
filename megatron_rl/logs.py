"""The logs of a run's processes: each appends to its own, attempt after attempt, and keeps it short.

A process looks at its log when it begins, and again whenever it has done what it was asked for. Where the log has grown
too long its middle is left out in place: the beginning, a line that says so, and the newest part stay. Whoever holds it
open goes on appending at its new end, and no disk is too full for that.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path
from typing import Final, NamedTuple

MOST_BYTES: Final = 32 << 20
"""How long a log may be when a process looks at it."""
HEAD_BYTES: Final = 1 << 20
"""How much of its beginning is kept then."""
TAIL_BYTES: Final = 15 << 20
"""How much of its end, where a failure stands."""
GAP: Final = b"\n--- left out here"
"""How the line between them begins."""
_DATE: Final = "%Y-%m-%d %H:%M:%S"
_HEADING: Final = re.compile(r"--- (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.+): process (\d+) on (\S+)\s*")


class Begun(NamedTuple):
    """What a heading says: when a process began, the name of its log, its number and its machine."""

    when: float
    name: str
    pid: int
    machine: str


def heading(path: Path) -> str:
    """The line that a process writes into its log before all others; attempts are told apart by it."""
    return f"--- {now()} {path.stem}: process {os.getpid()} on {socket.gethostname()}"


def begun(line: str, path: Path) -> Begun | None:
    """What the line says, where it is a heading of this very log: others may be quoted there."""
    found = _HEADING.fullmatch(line) if line.startswith("--- ") else None
    if found is None or found[2] != path.stem:
        return None
    return Begun(moment(found[1]), found[2], int(found[3]), found[4])


def newest(path: Path) -> list[str]:
    """What the last process that began there has said."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    headings = [number for number, line in enumerate(lines) if begun(line, path)]
    return lines[headings[-1] + 1 :] if headings else lines


def now() -> str:
    """The date and time, as logs have them."""
    return time.strftime(_DATE)


def moment(text: str) -> float:
    """The inverse of `now`, in seconds since 1970; 0 where it is no date that a calendar has."""
    try:
        return time.mktime(time.strptime(text, _DATE))
    except (ValueError, OverflowError):
        return 0.0


def with_room(path: Path) -> Path:
    """The log to append to, short enough, in a folder that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shorten(path)
    return path


def shorten(path: Path) -> None:
    """Leaves out the middle of a log that has grown too long. Call it on the machine of those who append to it.

    What they write in the instant of the cut is lost. A disk that fails leaves beginning and end where they were, and
    the log grows on until a later look.
    """
    with contextlib.suppress(OSError):  # a log is no reason to end a run
        if path.stat().st_size > MOST_BYTES:
            with path.open("r+b", buffering=0) as log:
                _leave_out_middle(log.fileno())


def _leave_out_middle(log: int) -> None:
    head, source = os.pread(log, HEAD_BYTES, 0), os.fstat(log).st_size - TAIL_BYTES
    ends = (head.find(GAP), head.rfind(b"\n"), len(head))  # an earlier gap is where this one is
    target = next(end for end in ends if end >= 0)
    # Nothing that is kept is written over before its copy stands.
    target = _written(log, GAP + time.strftime(" on %F at %T: the log had grown too long\n").encode(), target)
    source += os.pread(log, TAIL_BYTES, source).find(b"\n") + 1
    while news := os.pread(log, MOST_BYTES, source):  # what is written meanwhile too: copying is faster than saying
        source, target = source + len(news), _written(log, news, target)
    os.ftruncate(log, target)


def _written(log: int, data: bytes, place: int) -> int:
    """Writes all of it at this place, and returns the place behind it."""
    left = memoryview(data)
    while left:
        done = os.pwrite(log, left, place)
        left, place = left[done:], place + done
    return place
