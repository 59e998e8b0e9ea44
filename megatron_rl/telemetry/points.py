"""One step as it is kept: the loop's record, what the batch itself says, and the totals so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import EPOCH, REUSED, TOKENS, VERSION, Column
from megatron_rl.failures import lived
from megatron_rl.ports import Evaluation, StepRecord
from megatron_rl.telemetry.metrics import batch_metrics

SECONDS, EVALUATION = "seconds/", "evaluation/"
WHOLE = ("step", "epoch", "version", "rollouts", "tokens", "total_tokens")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A step on every axis. `flat(point)` is its line in metrics.jsonl and its row in wandb.

    Point(step=12, epoch=0, version=11, rollouts=256, tokens=7800, total_tokens=91000, total_seconds=50.2,
          seconds={"collect": 2.1, "update": 1.9}, parts={"collect/generate": 2.0}, metrics={"reward/mean": .41})
    """

    step: int
    epoch: int
    version: int
    """Of the policy that wrote the newest rollout of the batch."""
    rollouts: int
    tokens: int
    """Response tokens the engine wrote for this step: those filtered out later included, an evaluation's not."""
    total_tokens: int
    """What training has written. It and `total_seconds` go on in a resumed run where the interrupted one was."""
    total_seconds: float
    """Of all phases of all steps, evaluations and saves included: how long the run has taken."""
    seconds: Mapping[str, float]
    metrics: Mapping[str, float]
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of the seconds, by phase and stage."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the steps so far add up to."""

    tokens: int = 0
    seconds: float = 0.0

    def point(self, record: StepRecord, batch: Batch, tokens: int) -> Point:
        """The step's point, at the totals it brings about. The loop's own metrics win over what the batch says."""
        living = batch.where(lived(batch))
        return Point(
            step=record.step,
            epoch=_newest(living, EPOCH),
            version=_newest(living, VERSION),
            rollouts=record.rollouts,
            tokens=tokens,
            total_tokens=self.tokens + tokens,
            total_seconds=self.seconds + sum(record.seconds.values()),
            seconds=dict(record.seconds),
            parts=dict(record.parts),
            metrics={**batch_metrics(batch), **batch.metrics, **record.metrics},
        )


def totals(point: Point) -> Totals:
    return Totals(tokens=point.total_tokens, seconds=point.total_seconds)


@dataclass(frozen=True, kw_only=True)
class WaveCount:
    """Counts the tokens of a step's waves from their progress, each wave starting again from zero."""

    finished: int = 0
    """Tokens of the waves before."""
    current: int = 0
    """Tokens of the wave under way."""
    done: int = 0
    """Requests done of the wave under way."""

    def seen(self, done: int, tokens: int) -> WaveCount:
        begins = done < self.done or tokens < self.current
        return WaveCount(finished=self.tokens if begins else self.finished, current=tokens, done=done)

    @property
    def tokens(self) -> int:
        return self.finished + self.current

    def told(self) -> WaveCount:
        """What is to be counted from here on of the wave under way, and behind it."""
        return replace(self, finished=-self.current)


def written_tokens(batch: Batch) -> int:
    """Response tokens of the batch that an engine wrote, drafts left out."""
    if TOKENS not in batch:
        return 0
    return int(batch.ragged(TOKENS).length_B.sum() - batch.numbers(REUSED).sum())


def flat(record: Point | Evaluation) -> dict[str, float]:
    """Every number of a record under one flat name."""
    if isinstance(record, Evaluation):
        return {"step": record.step} | {EVALUATION + name: value for name, value in record.metrics.items()}
    numbers: dict[str, float] = {name: getattr(record, name) for name in (*WHOLE, "total_seconds")}
    numbers |= {SECONDS + phase: value for phase, value in (*record.seconds.items(), *record.parts.items())}
    return numbers | {name: value for name, value in record.metrics.items() if name not in numbers}


def point_of(numbers: Mapping[str, float]) -> Point:
    """The inverse of `flat` for a step."""
    own = {*WHOLE, "total_seconds"}
    whole = {name: int(numbers[name]) for name in WHOLE}
    spent = {name.removeprefix(SECONDS): value for name, value in numbers.items() if name.startswith(SECONDS)}
    return Point(
        step=whole["step"],
        epoch=whole["epoch"],
        version=whole["version"],
        rollouts=whole["rollouts"],
        tokens=whole["tokens"],
        total_tokens=whole["total_tokens"],
        total_seconds=float(numbers["total_seconds"]),
        seconds={phase: value for phase, value in spent.items() if "/" not in phase},
        parts={part: value for part, value in spent.items() if "/" in part},
        metrics={name: value for name, value in numbers.items() if name not in own and not name.startswith(SECONDS)},
    )


def evaluation_of(numbers: Mapping[str, float]) -> Evaluation:
    """The inverse of `flat` for an evaluation."""
    metrics = {name.removeprefix(EVALUATION): value for name, value in numbers.items() if name.startswith(EVALUATION)}
    return Evaluation(step=int(numbers["step"]), metrics=metrics)


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _newest(batch: Batch, column: Column) -> int:
    return int(batch.numbers(column).max()) if column in batch and len(batch) else 0
