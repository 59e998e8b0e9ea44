"""PPO's advantage: how much better things went than the critic had expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, RETURNS, REWARD, VALUES
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.segments import kept
from megatron_rl.ops.values import outcome_gae, whiten
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class GeneralisedAdvantage:
    """Writes `returns` and `advantage`: GAE(gamma, lambda) of a reward paid at the last live token, then whitened."""

    reads = (REWARD, VALUES, LOSS_MASK)
    writes = (ADVANTAGE, RETURNS)

    gamma: Annotated[float, Gt(0), Le(1)] = 1.0
    """Discount a token."""
    lam: Annotated[float, Ge(0), Le(1)] = 1.0
    """How far ahead rewards are waited for: 1 takes what came, 0 what the critic says one token on."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        mask, value_T = batch.ragged(LOSS_MASK), batch.ragged(VALUES).values
        # Values are of single precision, and wider numbers would cost more in new memory than in arithmetic.
        reward_B = batch.numbers(REWARD).to(value_T.dtype)
        estimate = outcome_gae(reward_B, (value_T, mask.offsets), mask.values, self.gamma, self.lam)
        # What the critic had not expected is the advantage.
        left_N, return_N = (kept(each_T, mask.values) for each_T in estimate)
        spread = return_N.var(correction=0) if len(return_N) else torch.zeros(())
        metrics = {
            "generalised_advantage/value_mean": float(kept(value_T, mask.values).mean()),
            "generalised_advantage/return_mean": float(return_N.mean()),
            "generalised_advantage/explained": float(1 - left_N.var(correction=0) / spread) if spread > 0 else 0.0,
        }
        advantage = Ragged(whiten(estimate.advantage_T, mask.values), mask.offsets)
        columns = batch.with_columns(advantage=advantage, returns=Ragged(estimate.return_T, mask.offsets))
        return columns.with_metrics(metrics if len(left_N) else {}), memory
