"""What a run spends: tokens generated, verified, scored and trained on, and seconds, by stage.

Seconds are processor seconds of the one process that trains and generates: on a machine that others use too, they are
what the clock would show on a quiet one. The clock's seconds are kept beside them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PREFIX, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.laws import Laws, shown
from megatron_rl.loop import Run
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import Actor, Critic, Evaluation, Judge, Objective, Policy, RolloutEngine, StepRecord, Update
from tools.claims.apart import forget_peak, resident_mib


@dataclass(kw_only=True)
class Spending:
    """Running totals: `tokens/…`, `rollouts/…`, and for each stage `processor/…` and `clock/…` seconds.

    `memory/peak` is the most MiB that learning and scoring took, above what the process had before.
    """

    totals: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    before_mib: float = field(default_factory=resident_mib)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        processor, clock = time.process_time(), time.perf_counter()
        yield
        self.totals[f"processor/{stage}"] += time.process_time() - processor
        self.totals[f"clock/{stage}"] += time.perf_counter() - clock

    @contextmanager
    def on_learning(self, stage: str) -> Iterator[None]:
        forget_peak()
        with self.on(stage):
            yield
        taken = resident_mib("VmHWM") - self.before_mib
        self.totals["memory/peak"] = max(self.totals["memory/peak"], taken)


@dataclass(kw_only=True)
class MeteredEngine:
    """A `RolloutEngine` that counts what it writes and what it verifies."""

    engine: RolloutEngine
    spent: Spending

    @property
    def sampling(self) -> Sampling:
        return self.engine.sampling

    @property
    def max_tokens(self) -> int:
        return self.engine.max_tokens

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        with self.spent.on("generate"):
            written = self.engine.generate(batch, sampling)
        given = len(batch.ragged(PREFIX).values) if PREFIX in batch else 0
        self.spent.totals["tokens/generated"] += len(written.ragged(TOKENS).values) - given
        self.spent.totals["rollouts/generated"] += len(written)
        return written

    def score(self, batch: Batch) -> Ragged:
        with self.spent.on("verify"):
            scored = self.engine.score(batch)
        self.spent.totals["tokens/verified"] += len(scored.values)
        return scored

    def laws(self, batch: Batch, top: int) -> Laws:
        """Of drafts, so part of verifying them."""
        with self.spent.on("verify"):
            laws = shown(self.engine).laws(batch, top)
        self.spent.totals["tokens/verified"] += len(laws.scores.values)
        return laws

    def close(self) -> None:
        self.engine.close()


@dataclass(kw_only=True)
class MeteredActor:
    """An `Actor` that counts what it scores and learns from."""

    actor: Actor
    spent: Spending

    def update(self, batch: Batch, objective: Objective) -> Update:
        with self.spent.on_learning("update"):
            update = self.actor.update(batch, objective)
        self.spent.totals["tokens/trained"] += len(batch.ragged(TOKENS).values)
        self.spent.totals["rollouts/trained"] += len(batch)
        return update

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        with self.spent.on_learning("score"):
            scored = self.actor.score(batch, policy)
        self.spent.totals["tokens/scored"] += len(scored.values)
        return scored

    def save(self, folder: Path) -> Future[None]:
        return self.actor.save(folder)

    def load(self, folder: Path) -> None:
        self.actor.load(folder)

    def close(self) -> None:
        self.actor.close()


@dataclass(kw_only=True)
class MeteredCritic:
    """A `Critic` that counts what it says and learns."""

    critic: Critic
    spent: Spending

    def value(self, batch: Batch) -> Ragged:
        with self.spent.on_learning("critic"):
            values = self.critic.value(batch)
        self.spent.totals["tokens/valued"] += len(values.values)
        return values

    def update(self, batch: Batch) -> Update:
        with self.spent.on_learning("critic"):
            return self.critic.update(batch)


@dataclass(kw_only=True)
class MeteredJudge:
    """A `Judge` that is timed. Its graders are processes of their own, so the clock tells more than the processor."""

    judge_: Judge
    spent: Spending

    def judge(self, batch: Batch) -> Batch:
        with self.spent.on("judge"):
            return self.judge_.judge(batch)

    def close(self) -> None:
        self.judge_.close()  # type: ignore[attr-defined]  # the pool that assemble opened


@dataclass(kw_only=True)
class Ledger:
    """A `Telemetry` that keeps one entry a step and one an evaluation; evaluations cost nothing in it."""

    run: Run
    spent: Spending
    kept: tuple[str, ...] = ()
    """Metrics of a step that are kept beside what it spent."""
    target: float = 2.0
    """The run ends at the first evaluation whose accuracy, averaged with the one before, reaches this."""
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def start(self, step: int, steps: int) -> None:
        self._since = (time.process_time(), time.perf_counter())

    def wave(self, done: int, total: int, tokens: int) -> None: ...

    def step(self, record: StepRecord, batch: Batch) -> None:
        self.spent.totals["processor/all"] += time.process_time() - self._since[0]
        self.spent.totals["clock/all"] += time.perf_counter() - self._since[1]
        kept = {name: record.metrics[name] for name in self.kept if name in record.metrics}
        reward = {"reward/mean": record.metrics.get("reward/mean", float("nan"))}
        self.steps.append({"step": record.step, **self.spent.totals, **reward, **kept})
        self.start(record.step, 0)

    def measuring(self) -> None: ...

    def evaluation(self, evaluation: Evaluation) -> None:
        accuracy = evaluation.metrics["arithmetic/pass@1"]
        before = [entry["accuracy"] for entry in self.evaluations[-1:]]
        self.evaluations.append({"step": evaluation.step, **self.spent.totals, "accuracy": accuracy})
        if before and (accuracy + before[0]) / 2 >= self.target:
            self.run.schedule = replace(self.run.schedule, steps=self.run.step)
        self.start(evaluation.step, 0)

    def close(self, reason: str) -> None: ...
