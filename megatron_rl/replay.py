"""Stages run again on a batch that a run has kept: what a change of the algorithm would have made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import Column
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.failures import lived
from megatron_rl.pipeline import Chain, Memories
from megatron_rl.ports import Context

MACHINES: Final = frozenset(("engine", "actor", "critic"))
"""What a replay does without: a stage that needs one of these leaves its columns as they were recorded."""


class ReplayError(ValueError):
    """A replay that could not show what the run did, and why."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of a column: Change(column="advantage", rows=12, of=256, largest=0.31)."""

    column: str
    rows: int
    """Rollouts in which it differs."""
    of: int
    largest: float
    """The largest difference of two numbers; not-a-number for text, or where lengths differ."""

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.column}: as recorded, to the bit"
        return f"{self.column}: other in {self.rows} of {self.of} rollouts, by at most {self.largest:.6g}"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The batch as the chain left it, what changed in it, and the stages that were not run."""

    batch: Batch
    changes: tuple[Change, ...]
    skipped: tuple[str, ...]
    metrics: Mapping[str, float]
    """What the stages said of the batch and the record does not say, or says otherwise."""


def replay(chain: Chain, recorded: Batch, memories: Memories, context: Context) -> Replayed:
    """Runs the chain's stages on the recorded rows, except those that need the engine or the actor.

    Rollouts that failed stand in a record, but no stage saw them. `memories` are those of the step before; for rollouts
    written ahead, of the step whose weights wrote them. A stage that remembers is refused where they are missing,
    unless nothing came before.
    """
    kept: dict[str, Memory] = dict(memories)
    recorded = recorded.where(lived(recorded))
    batch, skipped = recorded, list[str]()
    written: dict[str, Column] = {}
    for step in chain.steps:
        if MACHINES & set(getattr(step.stage, "uses", ())):
            skipped.append(step.name)
            continue
        before = kept.get(step.slot)
        batch, after = step.stage(batch, before, context)
        if after is not None and before is None and context.step > 0 and step.slot not in memories:
            raise ReplayError(
                f"stage '{step.name}' remembers what earlier steps did, and the run kept no checkpoint of step "
                f"{context.version}; save that step (schedule.save_every), or replay one that follows a checkpoint."
            )
        kept[step.slot] = after
        written |= {column.name: column for column in step.stage.writes}
    changes = tuple(_change(column, recorded, batch) for column in written.values())
    known = recorded.metrics
    metrics = {name: value for name, value in batch.metrics.items() if known.get(name) != value}
    return Replayed(batch=batch, changes=changes, skipped=tuple(skipped), metrics=metrics)


def _change(column: Column, recorded: Batch, batch: Batch) -> Change:
    if column not in recorded or len(recorded) != len(batch):
        return Change(column=column.name, rows=len(batch), of=len(batch), largest=float("nan"))
    before, after = recorded[column], batch[column]
    if isinstance(before, Ragged) and isinstance(after, Ragged):
        if not torch.equal(before.offsets, after.offsets):
            return Change(column=column.name, rows=len(batch), of=len(batch), largest=float("nan"))
        rows = torch.zeros(len(batch)).index_add_(0, before.row_T, _differs(before.values, after.values).float())
        return _counted(column, rows > 0, before.values, after.values)
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return _counted(column, _differs(before, after), before, after)
    other = sum(one != two for one, two in zip(list(before), list(after), strict=True))
    return Change(column=column.name, rows=other, of=len(batch), largest=float("nan"))


def _differs(before: Tensor, after: Tensor) -> Tensor:
    """Where the bits differ: a number that is not one is as good as another."""
    return (before != after) & ~(before.isnan() & after.isnan()) if before.is_floating_point() else before != after


def _counted(column: Column, differs_B: Tensor, before: Tensor, after: Tensor) -> Change:
    largest = float((before.double() - after.double()).abs().max()) if before.numel() else 0.0
    return Change(column=column.name, rows=int(differs_B.sum()), of=len(differs_B), largest=largest)
