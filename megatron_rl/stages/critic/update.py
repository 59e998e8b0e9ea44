"""PPO: the critic learns what the returns were; the policy may have to wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import LOSS_MASK, PROMPT_TOKENS, RETURNS, TOKENS, VALUES
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Update:
    """Moves the critic towards `returns`; while it warms up, masks every token so that the policy rests."""

    reads = (PROMPT_TOKENS, TOKENS, LOSS_MASK, VALUES, RETURNS)
    writes = (LOSS_MASK,)
    uses: ClassVar[tuple[str, ...]] = ("critic",)

    warmup: Annotated[int, Ge(0)] = 0
    """Steps of the run in which only the critic learns."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        update = context.critic.update(batch)
        told = {f"critic/{name}": value for name, value in update.metrics.items()}
        learnt = batch.with_metrics({**told, "critic/skipped": float(update.skipped)})
        if context.step >= self.warmup:
            return learnt, memory
        mask = batch.ragged(LOSS_MASK)
        return learnt.with_columns(loss_mask=Ragged(torch.zeros_like(mask.values), mask.offsets)), memory
