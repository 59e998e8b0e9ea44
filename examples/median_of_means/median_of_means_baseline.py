"""An algorithm of your own is one file: a baseline that a few wild rewards cannot move.

Each rollout is measured by the median of means of the others of its group: dealt over `parts`, averaged part by part,
and the median of these averages taken. One part gives RLOO's baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD, SLOT
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class MedianOfMeansBaseline:
    """Writes `baseline`: the median of means of the other rollouts' rewards, zero where there is no other."""

    reads = (REWARD, GROUP, SLOT)
    writes = (BASELINE,)

    parts: Annotated[int, Ge(1)] = 3
    """Parts that the other rollouts are dealt over, in the order of their slots."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        reward_B, slot_B = batch.numbers(REWARD), batch.numbers(SLOT)
        baseline_B = torch.zeros_like(reward_B)
        for rows in batch.group_rows():
            ordered = rows[slot_B[rows].argsort()]
            for place, row in enumerate(ordered.tolist()):
                others = torch.cat([ordered[:place], ordered[place + 1 :]])
                baseline_B[row] = median_of_means(reward_B[others], self.parts)
        return batch.with_columns(baseline=baseline_B), memory


def median_of_means(x_N: Tensor, parts: int) -> Tensor:
    """Zero of no numbers."""
    if not len(x_N):
        return torch.zeros((), dtype=x_N.dtype)
    means_P = torch.stack([x_N[start::parts].mean() for start in range(min(parts, len(x_N)))])
    return means_P.quantile(0.5)
