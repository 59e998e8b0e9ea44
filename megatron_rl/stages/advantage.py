"""Advantages from rewards and baselines."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, BASELINE, REWARD, SPREAD, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """Writes (reward - baseline) / spread on every token of the response."""

    reads = (REWARD, BASELINE, SPREAD, TOKENS)
    writes = (ADVANTAGE,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        advantage_B = (batch.numbers(REWARD) - batch.numbers(BASELINE)) / batch.numbers(SPREAD)
        tokens = batch.ragged(TOKENS)
        advantage = Ragged(torch.repeat_interleave(advantage_B.float(), tokens.length_B), tokens.offsets)
        metrics = {"advantage/mean": float(advantage_B.mean()), "advantage/square": float(advantage_B.square().mean())}
        return batch.with_columns(advantage=advantage).with_metrics(metrics), memory
