"""The saves of a run: one checkpoint at a time is on its way to disk, and the run may go on beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from megatron_rl import checkpoint
from megatron_rl.batch.memory import Memory
from megatron_rl.beside import beside
from megatron_rl.ports import Actor

LANDED: Final = "save/landed"
"""How long a checkpoint took to disk, beside the steps or while they waited."""
LEAVE_S: Final = 600.0
"""How long a run that ends early waits for a checkpoint on its way."""


@dataclass(kw_only=True)
class Saver:
    """Begins saves, and says what became of them."""

    root: Path
    keep: int
    """Checkpoints kept, the newest ones."""
    landed_s: float = 0.0
    """From its beginning until it was on disk, of the last save that got there."""
    _landing: Future[float] | None = None
    _began: float = 0.0
    _untold: dict[str, float] = field(default_factory=dict)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._landing is not None

    @property
    def under_way_s(self) -> float:
        """For how long one has been; 0 where none is."""
        return time.perf_counter() - self._began if self.is_busy else 0.0

    def begin(self, step: int, actor: Actor, memory: Memory, facts: Mapping[str, object]) -> None:
        """Takes aside what is to be saved, once the save before is on disk, and writes it beside what comes next."""
        self.finish()
        began = self._began = time.perf_counter()
        saved = checkpoint.begin(self.root, step, actor, memory, facts)

        def land() -> float:
            saved.result()
            checkpoint.prune(self.root, self.keep)
            return time.perf_counter() - began

        self._landing = beside(land, "land")

    def look(self) -> bool:
        """Whether a save has got to disk since; what went wrong with it is raised."""
        has_landed = self._landing is not None and self._landing.done()
        if has_landed:
            self.finish()
        return has_landed

    def finish(self) -> None:
        """Returns when nothing is on its way; what went wrong is raised."""
        if self._landing is not None:
            try:
                self.landed_s = self._landing.result()
            finally:
                if self._landing.done():  # Ctrl-C ends the wait, and not the save
                    self._landing = None
            self._untold = {LANDED: self.landed_s}

    def take_news(self) -> dict[str, float]:
        """The seconds of a save that got to disk since this was asked."""
        news, self._untold = self._untold, {}
        return news

    def leave(self) -> None:
        """For a run that ends otherwise than it should: a checkpoint that can still be had is waited for."""
        landing, self._landing = self._landing, None
        if landing is None:
            return
        if not landing.done():
            print(f"a checkpoint is on its way to {self.root}; Ctrl-C gives it up.", file=sys.stderr, flush=True)
        try:
            landing.result(LEAVE_S)
        except TooLate:
            print(f"it was given up: it is not there after {LEAVE_S:g} s.", file=sys.stderr)
        except Exception as error:  # noqa: BLE001  # the run ends with an error of its own, which is told last
            print(f"a checkpoint did not get to disk: {error}", file=sys.stderr)
