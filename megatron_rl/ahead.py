"""Collecting ahead: the engine writes the batches of later steps while the actor learns from this step's.

    step s, 1 ahead     driver   learn from batch s                       | publish s + 1
                        beside   collect batch s + 1 with version s       |

Which weights write a batch depends on its step alone: with k ahead, batch s is written by version max(0, s - k), never
by whatever happened to be ready. So a run repeats itself, and batches that wait at a save are part of the checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Final, NamedTuple

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.memory import Memory
from megatron_rl.loop import Run, next_batch
from megatron_rl.pipeline import Memories
from megatron_rl.ports import Context

AHEAD: Final = "ahead"
"""The slot of the batches that wait for their step."""

LEARNING: Final = ("actor", "critic")
"""The machines that are busy learning while rollouts are written."""

CLOSE_S: Final = 30.0
"""How long a run that ends early waits for its collector to notice."""

Progress = Callable[[int, int, int], None]


class AbandonedError(Exception):
    """The run ends, and nobody wants what is being collected."""


class Collected(NamedTuple):
    """What was done beside: batches in the order of their steps, memories after the last, and where time went."""

    batches: list[Batch]
    memories: Memories
    parts: Mapping[str, float]
    seconds: float


class Ahead:
    """A `Feed` that collects in a thread of its own, which alone uses the engine and the judge until `rest`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.metrics: Mapping[str, float] = {}
        self._beside: Future[Collected] | None = None
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def next_batch(self, run: Run, context: Context) -> Batch:
        """The oldest batch that waits; the engine goes on with those that are missing behind it."""
        if not _waiting(run.memories):
            self._collect(run, context, count=1)
            self.rest(run)
        batch, *waiting = _waiting(run.memories)
        run.memories = {**run.memories, AHEAD: {"batches": [*waiting]}}
        later = replace(context, step=context.step + 1 + len(waiting))
        self._collect(run, later, count=self.steps - len(waiting))
        return batch

    def rest(self, run: Run) -> None:
        """Waits for the collection in hand; what went wrong in it is raised here."""
        if self._beside is None:
            return
        began, beside, self._beside = time.perf_counter(), self._beside, None
        done = beside.result()
        waited = time.perf_counter() - began
        waiting: list[Memory] = [*_waiting(run.memories), *done.batches]
        learnt = {slot: memory for slot, memory in run.memories.items() if slot in _learning_slots(run)}
        run.memories = {**learnt, **done.memories, AHEAD: {"batches": waiting}}
        run.parts = {**run.parts, **done.parts}
        self.metrics = {
            "ahead/waiting": float(len(waiting)),
            "ahead/collect_seconds": done.seconds,
            "ahead/hidden_seconds": max(0.0, done.seconds - waited),
        }

    def close(self) -> None:
        """Tells the collector to stop, and waits until it has."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def watched(self, progress: Progress) -> Progress:
        """The same progress, by which a collector that nobody waits for notices it in the middle of a wave."""

        def tell(done: int, total: int, tokens: int) -> None:
            if self._is_over.is_set():
                raise AbandonedError("the run has ended; what its engine was writing is not wanted any more")
            progress(done, total, tokens)

        return tell

    def _collect(self, run: Run, first: Context, count: int) -> None:
        """Begins with the batches of `count` steps, all written by the version that the engine has now."""
        if count <= 0:
            return
        learnt = {*_learning_slots(run), AHEAD}
        memories = {slot: memory for slot, memory in run.memories.items() if slot not in learnt}
        machines = {name: machine for name, machine in run.machines.items() if name not in LEARNING}
        twin = replace(run, memories=memories, machines=machines, seconds={}, parts={})
        future: Future[Collected] = Future()

        def work() -> None:
            try:
                future.set_result(self._collected(twin, replace(first, machines=machines), count))
            except BaseException as error:  # noqa: BLE001  # raised by `rest`, where the run waits for it
                future.set_exception(error)

        # A daemon, so that a run that fails while an engine hangs can still end.
        self._thread = threading.Thread(target=work, name="collect", daemon=True)
        self._beside = future
        self._thread.start()

    def _collected(self, twin: Run, first: Context, count: int) -> Collected:
        began, batches = time.perf_counter(), list[Batch]()
        while len(batches) < count and not self._is_over.is_set():
            batches.append(next_batch(twin, replace(first, step=first.step + len(batches))))
        return Collected(batches, twin.memories, twin.parts, time.perf_counter() - began)


def _learning_slots(run: Run) -> set[str]:
    """The memories that the learn chain moves; all others belong to whoever collects."""
    return {step.slot for step in run.learn.steps}


def _waiting(memories: Memories) -> list[Batch]:
    state = memories.get(AHEAD)
    if state is None:
        return []
    batches = state["batches"] if isinstance(state, Mapping) else None
    if not isinstance(batches, list) or not all(isinstance(batch, Batch) for batch in batches):
        raise TypeError(f"what waits ahead is a list of batches, got {state!r}")
    return [batch for batch in batches if isinstance(batch, Batch)]
