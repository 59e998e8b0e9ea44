"""GRPO's baseline, and Dr.GRPO's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD, SPREAD
from megatron_rl.ops.segments import group_moments
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class GroupBaseline:
    """Writes `baseline`: the mean reward of the group, and `spread`: its standard deviation.

    A group of one has mean 0 and deviation 1.
    """

    reads = (REWARD, GROUP)
    writes = (BASELINE, SPREAD)

    scale: bool = True
    """Divide advantages by the group's standard deviation (GRPO); off is Dr.GRPO."""
    eps: float = 1e-6
    """Added to the standard deviation."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        group_B = batch.group_index()
        size_G, mean_G, variance_G = group_moments(batch.numbers(REWARD), group_B)
        mean_G = torch.where(size_G > 1, mean_G, 0.0)
        spread_G = torch.where(size_G > 1, variance_G.sqrt(), 1.0) + self.eps if self.scale else torch.ones_like(mean_G)
        constant_share = float(((variance_G == 0) & (size_G > 1)).double().mean())
        columns = batch.with_columns(baseline=mean_G[group_B], spread=spread_G[group_B])
        return columns.with_metrics({"group/constant_share": constant_share}), memory
