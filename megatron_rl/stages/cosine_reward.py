"""Right answers are worth more the shorter they are, wrong ones cost less the longer they tried."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, RESPONSE_TEXT, REWARD
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class CosineReward:
    """Replaces the reward by a value between two, along half a cosine of the response's length in characters.

    collect: [generate, judge, cosine_reward]    # a right answer of no length 1, one of 1000 characters or more 0.5
    """

    reads = (REWARD, CORRECT, RESPONSE_TEXT)
    writes = (REWARD,)

    right: tuple[float, float] = (1.0, 0.5)
    """Of a right answer: the shortest, and one of `characters`."""
    wrong: tuple[float, float] = (-0.5, 0.0)
    """Of a wrong answer: the shortest, and one of `characters`."""
    characters: Annotated[int, Gt(0)] = 1000
    """From this length on nothing changes any more."""
    weight: float = 1.0

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        length_B = torch.tensor([len(text) for text in batch.strings(RESPONSE_TEXT)], dtype=torch.float64)
        fall_B = 0.5 * (1 - torch.cos(math.pi * (length_B / self.characters).clamp(max=1.0)))
        is_right_B = batch.numbers(CORRECT).bool()
        right_B, wrong_B = (short + (long - short) * fall_B for short, long in (self.right, self.wrong))
        reward_B = self.weight * torch.where(is_right_B, right_B, wrong_B)
        return batch.with_columns({REWARD: reward_B.float()}), memory
