"""SPEC-RL, in `learn`: what lenient reuse did to the law of the tokens, undone in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, DRAFT_WEIGHTS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Multiplies the `advantage` of each reused token by its weight a max(p_new / p_old, 1 / lenience), capped."""

    reads = (ADVANTAGE, DRAFT_WEIGHTS)
    writes = (ADVANTAGE,)
    requires: ClassVar = {"drafts.reuse": "it writes the weights of what it keeps"}

    cap: Annotated[float, Gt(0)] = 2.0
    """No token weighs more."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        advantage, given = batch.ragged(ADVANTAGE), batch.ragged(DRAFT_WEIGHTS)
        weights = given.head(advantage.length_B)
        weight_N = weights.values.clamp_max(self.cap)
        left_B = advantage.length_B - weights.length_B
        runs = torch.stack([weights.length_B, left_B], 1).flatten()
        reused_T = torch.repeat_interleave(torch.tensor([True, False]).repeat(len(batch)), runs)
        weight_T = torch.ones_like(advantage.values).masked_scatter(reused_T, weight_N)
        told = {"drafts/weight_mean": float(weight_N.mean()) if len(weight_N) else 1.0}
        return batch.with_columns(advantage=Ragged(advantage.values * weight_T, advantage.offsets)).with_metrics(
            told
        ), memory
