"""RLOO's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD
from megatron_rl.ops.baselines import rloo
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutBaseline:
    """Writes `baseline`: the mean reward of the other rollouts of the group, zero in a group of one."""

    reads = (REWARD, GROUP)
    writes = (BASELINE,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        return batch.with_columns(baseline=rloo(batch.numbers(REWARD), batch.group_index())), memory
