"""The training loop: blind to algorithms and to backends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from megatron_rl import checkpoint
from megatron_rl.batch.batch import Batch
from megatron_rl.budget import Budget
from megatron_rl.buffer import GroupBuffer
from megatron_rl.failures import FAILED, refuse_silence, tell
from megatron_rl.pipeline import Chain, Memories, slot_of
from megatron_rl.ports import (
    Actor,
    Context,
    Evaluation,
    Evaluator,
    NotFinite,
    Objective,
    Sampler,
    StepRecord,
    Telemetry,
    Update,
    WeightSync,
)
from megatron_rl.saver import Saver
from megatron_rl.schedule import Schedule

SAMPLER, BUFFER, PROMPTS = "sampler", "buffer", "prompts"


class Feed(Protocol):
    """Hands every step its batch, and says when nobody is collecting."""

    def next_batch(self, run: Run, context: Context) -> Batch:
        """What this step learns from. The engine may go on collecting for later ones."""

    def give_way(self, run: Run) -> None:
        """Returns when the engine's weights may change."""

    def rest(self, run: Run) -> None:
        """Returns when nobody is collecting: the engine is free, and the run's memories are whole."""

    def close(self) -> None: ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """What is to be said of the step in hand."""


@dataclass(frozen=True, kw_only=True)
class InTurn:
    """Collects when it is asked: the engine rests while the actor learns."""

    dismiss: Callable[[], None] | None = None
    """Lets an engine that can sleep do so, once the batch is there; the next version wakes it."""

    def next_batch(self, run: Run, context: Context) -> Batch:
        batch = next_batch(run, context)
        if self.dismiss is not None:
            with run.part("collect", "sleep"):
                self.dismiss()
        return batch

    def give_way(self, run: Run) -> None:
        """Nobody stands in it."""

    def rest(self, run: Run) -> None:
        """Nobody ever is."""

    def close(self) -> None:
        """Holds nothing."""

    @property
    def metrics(self) -> Mapping[str, float]:
        return {}


@dataclass(kw_only=True)
class Run:
    """Everything one run is made of. Its memories and its step are all that change, besides the weights."""

    folder: Path
    seed: int
    schedule: Schedule
    sampler: Sampler
    collect: Chain
    learn: Chain
    objective: Objective
    buffer: GroupBuffer
    actor: Actor
    weights: WeightSync
    machines: Mapping[str, object]
    telemetry: Telemetry
    evaluator: Evaluator | None = None
    feed: Feed = field(default_factory=InTurn)
    facts: Mapping[str, object] = field(default_factory=dict)
    memories: Memories = field(default_factory=dict)
    step: int = 0
    saved_step: int = -1
    stopping: str = ""
    """Why the run should end after the step in hand; set from outside by a signal, or when the budget is spent."""
    budget: Budget | None = None
    """Of a job that is killed at a known time."""
    seconds: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """Of these seconds, by phase and stage."""
    save_s: float = 0.0
    """What the last save kept the run, until a step has told it."""
    phase: str = "start"
    """What it was last busy with, for whoever tells how it ended."""
    saver: Saver = field(init=False)

    def __post_init__(self) -> None:
        self.saver = Saver(root=self.folder / "checkpoints", keep=self.schedule.keep)

    def context(self, version: int) -> Context:
        return Context(step=self.step, version=version, seed=self.seed, machines=self.machines)

    def steps(self) -> Iterator[int]:
        """The steps left to do. `self.step` counts the finished ones."""
        while self.step < self.schedule.steps:
            if self.budget is not None and self.budget.is_spent(self.saver.under_way_s):
                self.stopping = self.stopping or "out of time"
            if self.stopping:
                return
            self.seconds, self.parts = {}, {}
            yield self.step
            if self.budget is not None:
                self.budget.learn(self.seconds)

    def timer(self, phase: str) -> AbstractContextManager[None]:
        self.phase = phase
        return _timing(self.seconds, phase)

    def part(self, phase: str, name: str) -> AbstractContextManager[None]:
        """Times what a phase is spent on."""
        self.phase = f"{phase}/{name}"
        return _timing(self.parts, f"{phase}/{name}")


def train(run: Run) -> None:
    """Trains until the steps are done or something asks to stop; the last thing it does is save."""
    version = run.weights.publish(run.step)
    _tell(run, _evaluate(run, due=run.step == 0 and run.schedule.evaluate_every > 0 and not run.stopping))
    for step in run.steps():
        with run.timer("collect"):
            batch = run.feed.next_batch(run, run.context(version))
        with run.timer("learn"):
            batch, run.memories = run.learn(batch, run.memories, run.context(version), partial(run.part, "learn"))
        with run.timer("update"):
            update = _update(run, batch)
        with run.timer("collect"):
            run.feed.give_way(run)
        with run.timer("publish"):
            version = run.weights.publish(step + 1)
        run.step = step + 1
        result = _evaluate(run, due=_is_due(run, run.schedule.evaluate_every))
        _tell_step(run, batch, update)
        _tell(run, result)
        _save(run, due=_is_due(run, run.schedule.save_every), may_wait=not run.schedule.save_async)
    _save(run, due=bool(run.step and (run.schedule.save_every or run.stopping)), may_wait=True)


def next_batch(run: Run, context: Context) -> Batch:
    """Draws, collects and buffers waves until one update's whole groups are there."""
    for _ in range(run.schedule.max_waves):
        with run.part("collect", BUFFER):
            batch, buffered = run.buffer.take(run.memories.get(BUFFER), context.step, context.version)
        run.memories = {**run.memories, BUFFER: buffered}
        if batch is not None:
            return batch
        _collect_wave(run, context)
        refuse_silence(run.memories.get(FAILED), run.buffer.prompts, context.step)
    raise RuntimeError(
        f"step {context.step}: {run.schedule.max_waves} waves in a row did not fill a batch of {run.buffer.prompts} "
        "groups; nearly all are being filtered out: widen the filter, change the prompts, or raise `schedule.max_waves`"
    )


def resume(run: Run) -> bool:
    """Takes up the latest checkpoint of the run's folder. False where there is none."""
    folder = checkpoint.latest(run.saver.root)
    if folder is None:
        return False
    saved, memory = checkpoint.load(folder, run.actor)
    if not isinstance(memory, Mapping):
        raise checkpoint.CheckpointError(
            f"checkpoint {folder}: its memory should be a mapping of slots, got {memory!r}"
        )
    if (began := saved.facts.get(PROMPTS)) not in (None, run.facts.get(PROMPTS)):
        raise checkpoint.CheckpointError(
            f"checkpoint {folder} goes on with {began}, but data.train has {run.facts.get(PROMPTS)} by now; put back "
            "what it was, or give the run another run.name"
        )
    run.step, run.saved_step, run.memories = saved.step, saved.step, memory
    return True


def _collect_wave(run: Run, context: Context) -> None:
    slot = slot_of(run.sampler, SAMPLER)
    with run.part("collect", SAMPLER):
        wave, drawn = run.sampler.draw(run.memories.get(slot), context)
    wave, memories = run.collect(wave, {**run.memories, slot: drawn}, context, partial(run.part, "collect"))
    if len(wave):
        with run.part("collect", SAMPLER):
            memories[slot] = run.sampler.observe(wave, memories.get(slot), context)
        with run.part("collect", BUFFER):
            memories[BUFFER] = run.buffer.push(memories.get(BUFFER), wave)
    run.memories = memories


@contextmanager
def _timing(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _is_due(run: Run, every: int) -> bool:
    return every > 0 and run.step % every == 0


def _evaluate(run: Run, due: bool) -> Evaluation | None:
    if not due or run.evaluator is None:
        return None
    with run.timer("collect"):
        run.feed.rest(run)
    run.telemetry.measuring()
    with run.timer("evaluate"):
        return run.evaluator.evaluate(run.step)


def _tell(run: Run, result: Evaluation | None) -> None:
    if result is not None:
        run.telemetry.evaluation(result)


def _save(run: Run, due: bool, may_wait: bool) -> None:
    """Begins what is due, and waits where it may, as for the first save of a job, so that time is kept for the last."""
    run.saver.look()
    is_first = run.budget is not None and run.budget.needs_save
    if (due or is_first) and run.saved_step != run.step:
        with run.timer("collect"):
            run.feed.rest(run)
        with run.timer("save"):
            run.saver.begin(run.step, run.actor, run.memories, run.facts)
            run.saved_step = run.step
            if is_first:
                run.saver.finish()
    if may_wait and run.saver.is_busy:
        with run.timer("save"):
            run.saver.finish()
    if run.budget is not None and run.saver.landed_s:
        run.budget.learn({"save": run.saver.landed_s})
    run.save_s += run.seconds.get("save", 0.0)


def _update(run: Run, batch: Batch) -> Update:
    """What the actor did; rows that kept it from learning are written out, also where it gives up over them."""
    try:
        update = run.actor.update(batch, run.objective)
    except NotFinite as error:
        _keep_offending(run, error.offending)
        raise
    if update.offending is not None:
        _keep_offending(run, update.offending)
    return update


def _keep_offending(run: Run, offending: Batch) -> None:
    folder = run.folder / "offending"
    folder.mkdir(parents=True, exist_ok=True)
    offending.write_parquet(folder / f"step_{run.step + 1:06d}.parquet")


def _tell_step(run: Run, batch: Batch, update: Update) -> None:
    """Tells what the step learnt from, and behind it the rollouts that have failed since the step before.

    Its own save comes after it is told, so it brings the one before.
    """
    before, run.save_s = ({"save": run.save_s} if run.save_s else {}), 0.0
    failed = tell(run.memories.get(FAILED))
    if failed.memory is not None:
        run.memories = {**run.memories, FAILED: failed.memory}
    record = StepRecord(
        step=run.step,
        seconds={**run.seconds, **before},
        parts={**run.parts, **run.saver.take_news()},
        metrics={**batch.metrics, **update.metrics, **run.weights.metrics, **run.feed.metrics, **failed.metrics},
        rollouts=len(batch),
    )
    run.telemetry.step(record, batch if failed.rows is None else batch.followed_by(failed.rows))
