"""SPEED-RL: which screened prompts are continued, and the groups that are complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT, LOSS_MASK, PHASE, SLOT
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.screening import classify
from megatron_rl.ops.segments import group_count
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Passes on complete groups and, not `kept`, the rejected ones; accepted screening rollouts wait in memory.

    A prompt is accepted if `low` < share of right screening rollouts < `high`, both strict.
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

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        state = dict(memory) if isinstance(memory, Mapping) else {"drawn": 0, "pending": None, "expired": 0}
        is_screen_B = torch.tensor([phase == "screen" for phase in batch.strings(PHASE)], dtype=torch.bool)
        screened, continued = batch.where(is_screen_B), batch.where(~is_screen_B)
        accepted_B = self._accepted(screened)
        complete = self._complete(state["pending"], continued)
        fresh, rejected = screened.where(accepted_B), screened.where(~accepted_B)
        waiting = {"screen/pending": float(group_count(fresh.group_index()))}
        metrics = _metrics(screened, accepted_B, continued) | waiting
        passed = Batch.concat([_kept(complete, 1), _kept(rejected, 0)]).with_metrics({**batch.metrics, **metrics})
        return passed, {**state, "pending": fresh if len(fresh) else None}

    def _accepted(self, screened: Batch) -> torch.Tensor:
        if not len(screened):
            return torch.zeros(0, dtype=torch.bool)
        group_B = screened.group_index()
        return classify(screened.numbers(CORRECT).double(), group_B, self.low, self.high).accept_G[group_B]

    def _complete(self, pending: Memory, continued: Batch) -> Batch:
        """Screening and continuation rollouts of each continued prompt together, in order of acceptance."""
        if not isinstance(pending, Batch):
            return continued
        both = Batch.concat([pending, continued])
        group_B = both.group_index()
        ordered = both.take(torch.argsort(group_B * (1 + int(both.numbers(SLOT).max())) + both.numbers(SLOT)))
        if self.loss_rollouts == "all":
            return ordered
        mask = ordered.ragged(LOSS_MASK)
        is_screen_B = torch.tensor([phase == "screen" for phase in ordered.strings(PHASE)])
        live_T = mask.values * (~is_screen_B[mask.row_T]).to(mask.values.dtype)
        return ordered.with_columns(loss_mask=Ragged(live_T, mask.offsets))


def _kept(batch: Batch, kept: int) -> Batch:
    return batch.with_columns(kept=torch.full((len(batch),), kept, dtype=torch.uint8))


def _metrics(screened: Batch, accepted_B: torch.Tensor, continued: Batch) -> dict[str, float]:
    right_B = screened.numbers(CORRECT).double()
    metrics = {
        "screen/screened": float(len(screened)),
        "screen/continued": float(len(continued)),
        "screen/discarded": float((~accepted_B).sum()),
    }
    if len(screened):
        metrics["screen/accepted_share"] = float(accepted_B.double().mean())
    if bool(accepted_B.any()):
        metrics["screen/accepted_mean"] = float(right_B[accepted_B].mean())
    if len(continued):
        metrics["screen/continued_mean"] = float(continued.numbers(CORRECT).double().mean())
    return metrics
