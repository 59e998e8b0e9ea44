"""PSPO's baseline: reward statistics of each prompt, smoothed over its visits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, PROMPT_ID, REWARD, SPREAD
from megatron_rl.batch.memory import Memory
from megatron_rl.ops.smoothing import Visits, previous_variance, smooth
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class SmoothedStats:
    """Writes `baseline` and `spread`: moving mean and deviation of the prompt's rewards, this visit included (ERS).

    Memory: `{prompt id: [mean, variance, visits]}`.
    """

    reads = (REWARD, PROMPT_ID)
    writes = (BASELINE, SPREAD)

    alpha: Annotated[float, Ge(0), Le(1)] | Literal["1/n"] = 0.99
    """Weight of the new visit: 1 is GRPO, 0 freezes the first visit, '1/n' weighs all visits alike."""
    eps: Annotated[float, Gt(0)] = 1e-4
    """Added to the deviation."""
    deviation: Literal["updated", "previous"] = "updated"
    """Whether this visit's spread counts in the denominator."""

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        known = dict(memory) if isinstance(memory, Mapping) else {}
        prompt_B = batch.index(PROMPT_ID)
        names = list(dict.fromkeys(batch.strings(PROMPT_ID)))
        before = _visits([known.get(name) for name in names])
        after = smooth(before, batch.numbers(REWARD), prompt_B, self.alpha)
        variance_G = after.variance_G if self.deviation == "updated" else previous_variance(before, after)
        spread_G = variance_G.sqrt() + self.eps
        visited = torch.stack([after.mean_G, after.variance_G], 1).tolist()
        remembered: dict[str, Memory] = {
            name: [*statistics, count]
            for name, statistics, count in zip(names, visited, after.count_G.tolist(), strict=True)
        }
        moved_G = (after.mean_G - before.mean_G)[before.count_G > 0]
        metrics = {"smoothed_stats/drift_mean": float(moved_G.abs().mean()) if len(moved_G) else 0.0}
        columns = batch.with_columns(baseline=after.mean_G[prompt_B], spread=spread_G[prompt_B])
        return columns.with_metrics(metrics), {**known, **remembered}


def _visits(statistics: list[Memory]) -> Visits:
    rows = [entry if isinstance(entry, list) else [0.0, 0.0, 0] for entry in statistics]
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 3)
    return Visits(table[:, 0], table[:, 1], table[:, 2].long())
