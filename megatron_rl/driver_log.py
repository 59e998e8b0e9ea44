"""logs/driver.log: how each attempt of a run began and ended, with the traceback of those that failed.

    --- 2026-11-22 05:06:10 driver: process 19101 on gpu-17
    Traceback (most recent call last): …
    --- 2026-11-22 05:07:02 driver: failed
    --- 2026-11-22 05:07:30 driver: process 21540 on gpu-17
    --- 2026-11-22 05:08:01 driver: finished

An attempt without an end goes on, or its process was killed. One that was refused says nothing of the run.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from megatron_rl.logs import Begun, begun, heading, moment, now, with_room
from megatron_rl.telemetry.sink import writing

FILE: Final = "logs/driver.log"
FINISHED, FAILED, REFUSED, INTERRUPTED = "finished", "failed", "refused", "interrupted"
_END: Final = re.compile(r"--- (\S+ \S+) driver: (finished|failed|refused|interrupted|stopped\b.*)")


class DriverLog:
    """Writes the log of the attempt that began when it was made; nothing before `begin`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._heading = heading(self._path)
        self._has_begun = False

    def begin(self) -> None:
        """The folder is this run's: the attempt counts."""
        if not self._has_begun:
            with writing(self._path):
                self._append(self._heading)
            self._has_begun = True

    def keep(self, trace: str) -> None:
        """The traceback of a failure, of which a full disk may be the reason."""
        with suppress(OSError):
            self.begin()
            self._append(trace.rstrip())

    def end(self, how: str) -> None:
        if self._has_begun:
            with suppress(OSError):
                self._append(f"--- {now()} driver: {' '.join(how.split())}")

    def _append(self, text: str) -> None:
        with with_room(self._path).open("a", encoding="utf-8", errors="replace") as log:
            log.write(f"{text}\n")


@dataclass(kw_only=True)
class Attempt:
    """One attempt as the log tells it."""

    begun: Begun
    ended: float = 0.0
    """0 where no end was told."""
    how: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        """A full disk takes a traceback's end, and what comes behind it."""
        return self.how == FAILED or (not self.how and any(line.startswith("Traceback") for line in self.said))

    @property
    def has_ended_well(self) -> bool:
        return bool(self.how) and self.how != FAILED


def attempts(folder: Path) -> list[Attempt]:
    """Those that the log tells of, oldest first, without the refused."""
    path = folder / FILE
    told: list[Attempt] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        if (its := begun(line, path)) is not None:
            told.append(Attempt(begun=its))
        elif told and (end := _END.fullmatch(line)):
            told[-1].ended, told[-1].how = moment(end[1]), end[2]
        elif told:
            told[-1].said.append(line)
    return [attempt for attempt in told if attempt.how != REFUSED]
