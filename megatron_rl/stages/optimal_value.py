"""A*-PO's target: what the best policy near the reference would be worth on each prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import OPTIMAL_VALUE, REFERENCE_REWARDS, REWARD
from megatron_rl.ops.values import optimal_value
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class OptimalValue:
    """Writes `optimal_value`: beta ln mean exp(r / beta) over the rewards a value run stored per prompt (A*-PO)."""

    reads = (REFERENCE_REWARDS, REWARD)
    writes = (OPTIMAL_VALUE,)

    beta: Annotated[float, Ge(0)] = 0.5
    """How optimistic the target is: 0 takes the best reward, .inf the mean one."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        rewards = batch.ragged(REFERENCE_REWARDS)
        if bool((rewards.length_B == 0).any()):
            raise ValueError("optimal_value found a prompt without reference rewards; run `megatron-rl values` on it")
        value_B = optimal_value(rewards.values.double(), rewards.row_T, self.beta)
        above_B = batch.numbers(REWARD) - value_B
        metrics = {
            "optimal_value/mean": float(value_B.mean()),
            "optimal_value/reference_rollouts": float(rewards.length_B.double().mean()),
            "optimal_value/unsolved_share": float((value_B <= 0).double().mean()),
            "optimal_value/advantage_mean": float(above_B.mean()),
            "optimal_value/advantage_square": float(above_B.square().mean()),
        }
        return batch.with_columns(optimal_value=value_B).with_metrics(metrics), memory
