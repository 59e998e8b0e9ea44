"""PPO's advantage: how much better things went than the critic had expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, RETURNS, REWARD, VALUES
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.values import Tokens, gae, reward_to_go, whiten
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
        mask, value_T = batch.ragged(LOSS_MASK), batch.ragged(VALUES).values.double()
        # With no discount left, the return of a token is what is paid at that token.
        paid_T = reward_to_go(batch.numbers(REWARD), mask.values, mask.offsets, gamma=0.0)
        estimate = gae(Tokens(paid_T, value_T, mask.values, mask.offsets), self.gamma, self.lam)
        live_T = mask.values.bool()
        left_N = (estimate.return_T - value_T)[live_T]
        spread = estimate.return_T[live_T].var(correction=0) if len(left_N) else torch.zeros(())
        metrics = {
            "generalised_advantage/value_mean": float(value_T[live_T].mean()),
            "generalised_advantage/return_mean": float(estimate.return_T[live_T].mean()),
            "generalised_advantage/explained": float(1 - left_N.var(correction=0) / spread) if spread > 0 else 0.0,
        }
        advantage = Ragged(whiten(estimate.advantage_T, mask.values).float(), mask.offsets)
        columns = batch.with_columns(advantage=advantage, returns=Ragged(estimate.return_T.float(), mask.offsets))
        return columns.with_metrics(metrics if len(left_N) else {}), memory
