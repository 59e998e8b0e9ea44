"""The run's telemetry: one port for the loop, any number of sinks behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_rl.batch.batch import Batch
from megatron_rl.ports import Evaluation, StepRecord
from megatron_rl.telemetry.jsonl import read_history
from megatron_rl.telemetry.points import Totals, WaveCount, totals, written_tokens
from megatron_rl.telemetry.sink import RunFacts, Sink


@dataclass(kw_only=True)
class Fanout:
    """Shows every sink the same points. A failing sink in `optional` is reported once, dropped, and the run goes on.

    The sinks in `required` keep the run's own record; their failure is the run's failure.
    """

    folder: Path
    required: Sequence[Sink]
    optional: Sequence[Sink] = ()
    warn: Callable[[str], None] = print
    piece: Callable[[int], str] = str
    """The text of one token."""
    spec: Mapping[str, object] = field(default_factory=dict)
    """The resolved configuration, as plain values."""

    def __post_init__(self) -> None:
        self._living = list(self.optional)
        self._totals = Totals()
        self._waves = WaveCount()
        self._is_writing = self._is_measuring = False
        # A wave may be under way, in a thread of its own, when a step is told.
        self._telling = threading.Lock()

    def start(self, step: int, steps: int) -> None:
        earlier = [point for point in read_history(self.folder).points if point.step <= step]
        self._totals = totals(earlier[-1]) if earlier else Totals()
        run = RunFacts(folder=self.folder, step=step, steps=steps, piece=self.piece, spec=self.spec)
        self._tell(lambda sink: sink.start(run))

    def wave(self, done: int, total: int, tokens: int) -> None:
        with self._telling:
            if not self._is_measuring:
                self._waves, self._is_writing = self._waves.seen(done, tokens), done < total
            self._tell(lambda sink: sink.wave(done, total, tokens))

    def step(self, record: StepRecord, batch: Batch) -> None:
        with self._telling:
            point = self._totals.point(record, batch, self._waves.tokens or written_tokens(batch))
            self._totals, self._waves = totals(point), self._waves.told() if self._is_writing else WaveCount()
            self._tell(lambda sink: sink.step(point, batch))

    def measuring(self) -> None:
        """What the engine writes for an evaluation is shown, and counted to no step."""
        self._is_measuring = True

    def evaluation(self, evaluation: Evaluation) -> None:
        self._is_measuring = False
        self._tell(lambda sink: sink.evaluation(evaluation))

    def close(self, reason: str) -> None:
        self._tell(lambda sink: sink.close(reason))

    def _tell(self, say: Callable[[Sink], None]) -> None:
        for sink in self.required:
            say(sink)
        for sink in list(self._living):
            try:
                say(sink)
            except Exception as error:  # noqa: BLE001  (a foreign service may fail in any way; the run must outlive it)
                self._living.remove(sink)
                name, first_line = type(sink).__name__, str(error).partition("\n")[0]
                self.warn(
                    f"telemetry: {name} failed and is left out from here on "
                    f"({type(error).__name__}: {first_line}); the run goes on"
                )
