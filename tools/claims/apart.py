"""A measurement in a process of its own, so that its peak memory is nobody else's."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def apart(make: Callable[[], Any]) -> Any:  # noqa: ANN401  # whatever JSON can say
    """What `make` returns in a forked process. The caller has trained nothing yet, so there are no threads to lose."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(make, theirs))
    process.start()
    theirs.close()
    try:
        told = ours.recv_bytes()
    except EOFError:
        raise RuntimeError("a measured run ended without a result; what it said stands above.") from None
    finally:
        process.join()
    return json.loads(told)


def _tell(make: Callable[[], Any], wire: Connection) -> None:
    wire.send_bytes(json.dumps(make()).encode())


def resident_mib(line: str = "VmRSS") -> float:
    """Memory of this process: now, or with 'VmHWM' its peak since `forget_peak`."""
    found = next(text for text in STATUS.read_text().splitlines() if text.startswith(line))
    return int(found.split()[1]) / 1024


def forget_peak() -> None:
    PEAK_RESET.write_text("5")
