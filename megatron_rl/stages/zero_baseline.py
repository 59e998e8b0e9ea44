"""REINFORCE's baseline: none."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, REWARD
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class ZeroBaseline:
    """Writes `baseline`: zero, so the advantage is the reward."""

    reads = (REWARD,)
    writes = (BASELINE,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        return batch.with_columns(baseline=torch.zeros(len(batch))), memory
