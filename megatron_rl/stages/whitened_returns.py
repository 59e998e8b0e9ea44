"""REINFORCE++'s advantage: no group, no critic, one scale for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, REWARD
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.segments import kept
from megatron_rl.ops.values import reward_to_go, whiten
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class WhitenedReturns:
    """Writes `advantage`: the reward still to come at each token, whitened over all live tokens of the batch."""

    reads = (REWARD, LOSS_MASK)
    writes = (ADVANTAGE,)

    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    """Discount a token; the reward is paid at the last live one."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        mask = batch.ragged(LOSS_MASK)
        return_T = reward_to_go(batch.numbers(REWARD), mask.values, mask.offsets, self.gamma)
        advantage = Ragged(whiten(return_T, mask.values), mask.offsets)
        live_N = kept(return_T, mask.values)
        metrics = {"returns/mean": float(live_N.mean()), "returns/deviation": float(live_N.std(correction=0))}
        return batch.with_columns(advantage=advantage).with_metrics(metrics if len(live_N) else {}), memory
