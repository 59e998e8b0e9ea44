"""A sink: one place where telemetry goes. All sinks of a run see the same points."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_rl.batch.batch import Batch
from megatron_rl.ports import Evaluation
from megatron_rl.telemetry.points import Point


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What every sink knows of its run."""

    folder: Path
    step: int
    """Finished steps: 0 for a fresh run, what the checkpoint had for a resumed one."""
    steps: int
    """Steps the run is to have at its end."""
    piece: Callable[[int], str] = str
    """The text of one token."""
    spec: Mapping[str, object] = field(default_factory=dict)
    """The resolved configuration, as plain values."""

    @property
    def name(self) -> str:
        return self.folder.name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what is written there: a disk that is full, locked or gone names no file of its own accord."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        raise OSError(
            f"{path} could not be written ({reason}), and the checkpoints stand as they were; see to its disk and run "
            "the same command again"
        ) from error


class Sink(Protocol):
    def start(self, run: RunFacts) -> None: ...

    def wave(self, done: int, total: int, tokens: int) -> None: ...

    def step(self, point: Point, batch: Batch) -> None: ...

    def evaluation(self, evaluation: Evaluation) -> None: ...

    def close(self, reason: str) -> None: ...
