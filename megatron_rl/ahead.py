"""Collecting ahead: the engine writes the batches of later steps while the actor learns from this step's.

    step s, 1 ahead     driver   learn from batch s                       | publish s + 1
                        beside   collect batch s + 1 with version s       |

Which weights write a batch depends on its step alone: with k ahead, batch s is written by version max(0, s - k), never
by whatever happened to be ready. So a run repeats itself, and batches that wait at a save are part of the checkpoint.
Only where an engine has lost every process with its version does a batch go on with the actor's next one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.memory import Memory
from megatron_rl.beside import beside
from megatron_rl.failures import FAILED, joined, tell
from megatron_rl.loop import Run, next_batch
from megatron_rl.pipeline import Memories
from megatron_rl.ports import Context

AHEAD: Final = "ahead"
"""The slot of the batches that wait for their step."""

LEARNING: Final = ("actor", "critic")
"""The machines that are busy learning while rollouts are written."""

CLOSE_S: Final = 30.0
"""How long a run that ends early waits for its collector to notice."""

LISTEN_S: Final = 0.2
"""How long a collection is waited for before looking whether it waits for weights."""

Progress = Callable[[int, int, int], None]


class Mortal(Protocol):
    """An engine whose processes may be lost, and with them the weights that the actor has left behind."""

    def leave_behind(self, is_left_behind: bool = True) -> None:
        """Says whether the actor has gone on from the weights that are served."""

    @property
    def awaits_weights(self) -> bool:
        """Whether what it writes goes on only when somebody publishes."""


class AbandonedError(Exception):
    """The run ends, and nobody wants what is being collected."""


class Collected(NamedTuple):
    """What was done beside: batches in the order of their steps, memories after the last, and where time went."""

    batches: list[Batch]
    memories: Memories
    parts: Mapping[str, float]
    seconds: float


class InHand(NamedTuple):
    """A collection in hand: what will come of it, and of how many steps."""

    collected: Future[Collected]
    steps: int


class Ahead:
    """A `Feed` that collects in a thread of its own, which alone uses the engine and the judge until `rest`."""

    def __init__(self, steps: int, engine: Mortal | None = None) -> None:
        self.steps, self.engine = steps, engine
        self._told: Mapping[str, float] = {}
        self._version = -1
        self._in_hand: deque[InHand] = deque()
        """The collections in hand, each going on from the one before."""
        self._is_over = threading.Event()

    @property
    def metrics(self) -> Mapping[str, float]:
        return self._told

    def next_batch(self, run: Run, context: Context) -> Batch:
        """The oldest batch that waits; the engine goes on with those that are missing behind it."""
        self._version, self._told = context.version, {}
        if self.engine is not None:
            self.engine.leave_behind()
        while not _waiting(run.memories):
            if not self._in_hand:
                self._collect(run, context, count=1)
            self._land(run, context.version)
        batch, *waiting = _waiting(run.memories)
        run.memories = {**run.memories, AHEAD: {"batches": [*waiting]}}
        begun = len(waiting) + sum(one.steps for one in self._in_hand)
        self._collect(run, replace(context, step=context.step + 1 + begun), count=self.steps - begun)
        return batch

    def give_way(self, run: Run) -> None:
        """Whoever writes goes on to the end with the weights it has."""
        self._land_all(run, run.step + 1)

    def rest(self, run: Run) -> None:
        """Waits for the collections in hand; what went wrong in one is raised here."""
        self._land_all(run, run.step)
        if self.engine is not None:
            self.engine.leave_behind(False)

    def _land_all(self, run: Run, version: int) -> None:
        while self._in_hand:
            self._land(run, version)

    def _land(self, run: Run, version: int) -> None:
        """Waits for the oldest collection in hand, and takes over what it moved; the actor is at this version."""
        began = time.perf_counter()
        while not wait([self._in_hand[0].collected], LISTEN_S).done:
            if self.engine is not None and self.engine.awaits_weights:
                print(f"No group of the engine is left: what it wrote goes on with version {version}.", file=sys.stderr)
                run.weights.publish(version)
        done = self._in_hand.popleft().collected.result()
        waited = time.perf_counter() - began
        waiting: list[Memory] = [*_waiting(run.memories), *done.batches]
        learnt = {slot: memory for slot, memory in run.memories.items() if slot in _learning_slots(run)}
        failed = joined(run.memories.get(FAILED), done.memories.get(FAILED))
        run.memories = {**learnt, **_with(done.memories, failed), AHEAD: {"batches": waiting}}
        run.parts = {**run.parts, **done.parts}
        self._told = {
            "ahead/waiting": float(len(waiting)),
            "ahead/collect_seconds": done.seconds,
            "ahead/hidden_seconds": max(0.0, done.seconds - waited),
        }

    def close(self) -> None:
        """Tells the collector to stop, and waits until it has."""
        self._is_over.set()
        wait([one.collected for one in self._in_hand], CLOSE_S)

    def watched(self, progress: Progress) -> Progress:
        """The same progress, by which a collector that nobody waits for notices it in the middle of a wave."""

        def tell(done: int, total: int, tokens: int) -> None:
            if self._is_over.is_set():
                raise AbandonedError("the run has ended; what its engine was writing is not wanted any more")
            progress(done, total, tokens)

        return tell

    def _collect(self, run: Run, first: Context, count: int) -> None:
        """Begins with the batches of `count` steps, once those in hand are there."""
        if count <= 0:
            return
        learnt = {*_learning_slots(run), AHEAD}
        memories = {slot: memory for slot, memory in run.memories.items() if slot not in learnt}
        machines = {name: machine for name, machine in run.machines.items() if name not in LEARNING}
        twin = replace(run, memories=memories, machines=machines, seconds={}, parts={})
        before = self._in_hand[-1].collected if self._in_hand else None

        def work() -> Collected:
            if before is not None:
                twin.memories = before.result().memories
            return self._collected(twin, replace(first, machines=machines), count)

        self._in_hand.append(InHand(beside(work, "collect"), count))

    def _collected(self, twin: Run, first: Context, count: int) -> Collected:
        began, batches = time.perf_counter(), list[Batch]()
        # Whoever learns tells what failed so far.
        twin.memories = _with(twin.memories, tell(twin.memories.get(FAILED)).memory)
        while len(batches) < count and not self._is_over.is_set():
            step, version = first.step + len(batches), max(first.version, self._version)
            batches.append(next_batch(twin, replace(first, step=step, version=version)))
        return Collected(batches, twin.memories, twin.parts, time.perf_counter() - began)


def _with(memories: Memories, failed: Memory) -> dict[str, Memory]:
    return {**memories} if failed is None else {**memories, FAILED: failed}


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
