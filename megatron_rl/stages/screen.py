"""SPEED-RL: which screened prompts are continued, and the groups that are complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT, LOSS_MASK, PHASE, SLOT
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.screening import classify
from megatron_rl.ops.segments import group_count
from megatron_rl.ports import Context

NOTHING: Mapping[str, Memory] = {"drawn": 0, "screened": 0, "pending": None, "expired": 0}
"""The memory before the first wave."""


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Passes on complete groups and, not `kept`, the rejected ones; accepted screening rollouts wait in memory.

    A prompt is accepted if `low` < share of right screening rollouts < `high`, both strict. One of whose continuation
    nothing came back waits on, to be continued once more.
    """

    slot: ClassVar[str] = "screening"
    requires: ClassVar = {"screening": "that sampler labels rollouts by phase and continues what is accepted here"}
    reads = (GROUP, SLOT, PHASE, CORRECT, LOSS_MASK)
    writes = (KEPT, LOSS_MASK)

    low: float = 0.0
    """Pass rates at or below are too hard."""
    high: float = 1.0
    """Pass rates at or above are too easy."""
    loss_rollouts: Literal["all", "continuation"] = "all"
    """'continuation' leaves screening rollouts out of the loss, for an unbiased gradient; baselines use all."""

    def __post_init__(self) -> None:
        if not (self.low < self.high and self.low < 1 and self.high > 0):
            raise ValueError(
                f"screen: low is {self.low} and high is {self.high}, between which no pass rate lies; pass rates go "
                "from 0 to 1, so low is below high and below 1, and high above 0"
            )

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        state = dict(memory) if isinstance(memory, Mapping) else dict(NOTHING)
        is_screen_B, group_B = _is_screen(batch), batch.numbers(GROUP)
        accepted_B = self._accepted(batch, is_screen_B)
        begun, left = _continued(state["pending"], group_B[~is_screen_B])
        passed = self._passed(begun, batch, is_screen_B, accepted_B)
        fresh = batch.where(accepted_B)
        pending = Batch.concat([left, fresh]) if left is not None else fresh
        waiting = {"screen/pending": float(group_count(pending.group_index()))}
        metrics = _metrics(batch.numbers(CORRECT).double(), is_screen_B, accepted_B) | waiting
        remembered = {
            "pending": pending if len(pending) else None,
            "screened": _whole(state["screened"]) + len(set(group_B[is_screen_B].tolist())),
        }
        return passed.with_metrics({**batch.metrics, **metrics}), {**state, **remembered}

    def _accepted(self, batch: Batch, is_screen_B: Tensor) -> Tensor:
        """The screening rollouts whose prompt can teach."""
        rows_S = is_screen_B.nonzero().flatten()
        group_S = batch.select([GROUP]).take(rows_S).group_index()
        screened = classify(batch.numbers(CORRECT).double()[rows_S], group_S, self.low, self.high)
        return torch.zeros_like(is_screen_B).index_put((rows_S,), screened.accept_G[group_S])

    def _passed(self, pending: Memory, batch: Batch, is_screen_B: Tensor, accepted_B: Tensor) -> Batch:
        """Whole groups in order of acceptance, then what is rejected; each rollout is copied once."""
        earlier = len(pending) if isinstance(pending, Batch) else 0
        both = Batch.concat([pending, batch]) if isinstance(pending, Batch) else batch
        continued = earlier + (~is_screen_B).nonzero().flatten()
        rejected = earlier + (is_screen_B & ~accepted_B).nonzero().flatten()
        complete = _in_groups(both, torch.cat([torch.arange(earlier), continued])) if earlier else continued
        kept_B = torch.cat([torch.ones_like(complete), torch.zeros_like(rejected)])
        passed = both.take(torch.cat([complete, rejected])).with_columns(kept=kept_B)
        if self.loss_rollouts == "all":
            return passed
        mask, is_dead_B = passed.ragged(LOSS_MASK), _is_screen(passed) & kept_B.bool()
        return passed.with_columns(loss_mask=Ragged(mask.values * ~is_dead_B[mask.row_T], mask.offsets))


def _continued(pending: Memory, group_C: Tensor) -> tuple[Memory, Batch | None]:
    """Of the prompts that waited, those whose continuation came back, at least in part, and those that wait on."""
    if not isinstance(pending, Batch):
        return None, None
    came_back_B = torch.isin(pending.numbers(GROUP), group_C)
    if bool(came_back_B.all()):
        return pending, None
    return (pending.where(came_back_B) if bool(came_back_B.any()) else None), pending.where(~came_back_B)


def _is_screen(batch: Batch) -> Tensor:
    return torch.tensor([phase == "screen" for phase in batch.strings(PHASE)], dtype=torch.bool)


def _in_groups(both: Batch, row_N: Tensor) -> Tensor:
    """The row numbers by group, groups in order of first appearance, and by slot within each."""
    rows = both.select([GROUP, SLOT]).take(row_N)
    slot_N = rows.numbers(SLOT)
    return row_N[torch.argsort(rows.group_index() * (1 + int(slot_N.max())) + slot_N)]


def _whole(value: Memory) -> int:
    if not isinstance(value, int):
        raise TypeError(f"screening's memory counts prompts in whole numbers, got {value!r}")
    return value


def _metrics(right_B: Tensor, is_screen_B: Tensor, accepted_B: Tensor) -> dict[str, float]:
    screened, accepted = int(is_screen_B.sum()), int(accepted_B.sum())
    metrics = {
        "screen/screened": float(screened),
        "screen/continued": float(len(right_B) - screened),
        "screen/discarded": float(screened - accepted),
    }
    if screened:
        metrics["screen/accepted_share"] = float(accepted_B[is_screen_B].double().mean())
    if accepted:
        metrics["screen/accepted_mean"] = float(right_B[accepted_B].mean())
    if screened < len(right_B):
        metrics["screen/continued_mean"] = float(right_B[~is_screen_B].mean())
    return metrics
