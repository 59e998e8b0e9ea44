"""What it means that a process of a run died of a signal: which signal, what usually sends it, what to do."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SHARED: Final = Path("/dev/shm")
MORE_SHARED: Final = "in a container by --shm-size=16g or --ipc=host, elsewhere by `mount -o remount,size=16g /dev/shm`"
_FATAL: Final = re.compile(r"Fatal Python error: (.+)|\*\*\* (SIG[A-Z]+) received\b.*")
_SIGNALS: Final[Mapping[str, str]] = {
    "Bus error": "SIGBUS",
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Floating point exception": "SIGFPE",
    "Floating-point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}
"""As Python calls them."""
_MEANINGS: Final[Mapping[str, str]] = {
    "SIGKILL": "mostly the kernel's out-of-memory killer ended it (`dmesg -T | grep -i 'killed process'` on {machine} "
    "says so); give the job more memory, or let it use less, by fewer ranks a machine or smaller micro-batches",
    "SIGBUS": "it used shared memory that could not be given, mostly because /dev/shm is full ({shared}); make it "
    f"larger, {MORE_SHARED}",
    "SIGSEGV": "a library's native code used memory that is not its own; the stack below 'Fatal Python error' in its "
    "log says in which call, and `megatron-rl doctor` lists the versions, which may not fit together",
    "SIGABRT": "a library gave up; its reason stands above 'Fatal Python error' in its log",
    "SIGILL": "a library was built for a processor that knows more instructions than that of {machine}",
    "SIGFPE": "a library's native code divided by zero; the stack below 'Fatal Python error' in its log says where",
}


def signal_of(line: str) -> str:
    """The signal that this line of a log tells a death of: `SIGBUS` of "Fatal Python error: Bus error", else ''."""
    found = _FATAL.match(line)
    if found is None:
        return ""
    return found[2] or _SIGNALS.get(found[1].strip(), "")


def meaning(signal: str, machine: str) -> str:
    """What usually sends it to a process of this machine, and what to do."""
    known = _MEANINGS.get(signal, "the end of its log may say why")
    return known.format(machine=machine or "its machine", shared=_shared(machine) if "{shared}" in known else "")


def _shared(machine: str) -> str:
    """What is there now: a run that has died gives back what it held."""
    if machine != socket.gethostname() or not SHARED.is_dir():
        return f"`df -h /dev/shm` on {machine or 'its machine'} says how large it is"
    usage = shutil.disk_usage(SHARED)
    return f"it has {size(usage.total)}, of which {size(usage.free)} are free now"


def size(count: int) -> str:
    """64 MiB, 15.7 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"
