"""The logs of a run's processes: each appends to its own, attempt after attempt, so each start makes room first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 32 << 20
"""How long a log may be when a process begins to append to it."""
HEAD_BYTES: Final = 1 << 20
"""How much of its beginning is kept then."""
TAIL_BYTES: Final = 15 << 20
"""How much of its end, where a failure stands."""


def with_room(path: Path) -> Path:
    """The log to append to, in a folder that is there; where it had grown too long its middle is left out.

    A process that still writes into the long one goes on doing so, and what it writes is lost with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return path
    if size <= MOST_BYTES:
        return path
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES).rpartition(b"\n")[0]
        stream.seek(size - TAIL_BYTES)
        tail = stream.read(TAIL_BYTES).partition(b"\n")[2]
    gap = f"\n--- {size - len(head) - len(tail)} bytes left out: the log had grown beyond {MOST_BYTES >> 20} MiB\n"
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(head + gap.encode() + tail)
    os.replace(aside, path)
    return path
