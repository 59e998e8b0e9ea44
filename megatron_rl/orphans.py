"""What a process's children leave behind: on Linux it is adopted by the process that asked for it, which can end it.

A program that a child started in a session of its own, or by two forks, outlives the child and its process group. Then
it is a child of the nearest ancestor that called `adopt`, whatever it did to hide.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

MOST_S: Final = 2.0
"""How long killed processes are waited for; one that the system does not let go is left to it."""
LOOK_S: Final = 0.001
_TASKS: Final = Path("/proc/self/task")
_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt() -> None:
    """From here on, what this process's descendants leave behind becomes its child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """The children of this process, ended ones that nobody waited for included."""
    lists = [task / "children" for task in _TASKS.iterdir()] if _TASKS.exists() else []
    if lists and lists[0].exists():  # as cheap on a machine with ten thousand processes
        return {int(pid) for each in lists for pid in each.read_text().split()}
    return {child.pid for child in psutil.Process().children()}


def ended() -> int:
    """How many children have ended and were not waited for."""
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return 0
    except ChildProcessError:
        return 0
    looked = (os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in children())
    return sum(found is not None for found in looked)


def end_children(spared: Set[int], most_s: float = MOST_S) -> set[int]:
    """Kills all children but the spared, and what they leave behind in turn; returns those that would not go."""
    ends = time.monotonic() + most_s
    while left := children() - spared:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > ends:
            break
        time.sleep(LOOK_S)
    return left
