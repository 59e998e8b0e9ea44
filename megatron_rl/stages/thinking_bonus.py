"""A response that ends its thinking, once and in plain sight, earns a bonus."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import RESPONSE_TEXT, REWARD
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class ThinkingBonus:
    """Adds `weight` to the reward of responses that hold the closing tag once, on a line of its own; `correct` stays.

    collect: [generate, judge, thinking_bonus]
    """

    reads = (REWARD, RESPONSE_TEXT)
    writes = (REWARD,)

    weight: float = 1.0
    tag: str = "</think>"

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        texts = batch.strings(RESPONSE_TEXT)
        earned_B = torch.tensor([self._is_in_form(text) for text in texts], dtype=torch.float32)
        shaped = batch.with_columns({REWARD: batch.numbers(REWARD) + self.weight * earned_B})
        share = float(earned_B.mean()) if len(texts) else 0.0
        return shaped.with_metrics({"thinking_bonus/share": share}), memory

    def _is_in_form(self, text: str) -> bool:
        return text.count(self.tag) == 1 and self.tag in text.split("\n")
