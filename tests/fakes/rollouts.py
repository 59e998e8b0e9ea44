"""Batches of random rollouts with everything an objective may read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    GROUP,
    LOSS_MASK,
    OPTIMAL_VALUE,
    PROMPT_TOKENS,
    REFERENCE_LOGPROBS,
    REWARD,
    SAMPLER_LOGPROBS,
    TOKENS,
)
from megatron_rl.batch.ragged import Ragged


def rollouts(
    groups: int = 4, samples: int = 3, vocabulary: int = 101, seed: int = 0, lengths: Sequence[int] | None = None
) -> Batch:
    """`groups` prompts with `samples` responses each; some response tokens are masked."""
    draw = np.random.default_rng(seed)
    count = groups * samples
    response_B = torch.as_tensor(draw.integers(1, 12, count) if lengths is None else np.asarray(lengths))
    prompts = [draw.integers(0, vocabulary, draw.integers(1, 6)).tolist() for _ in range(groups)]
    T = int(response_B.sum())

    def flat(values: np.ndarray, dtype: torch.dtype) -> Ragged:
        return Ragged.from_lengths(torch.as_tensor(values).to(dtype), response_B)

    advantage_B = torch.as_tensor(draw.normal(size=count))
    return Batch.of(
        {
            GROUP: np.repeat(np.arange(groups), samples),
            PROMPT_TOKENS: [prompts[row // samples] for row in range(count)],
            TOKENS: flat(draw.integers(0, vocabulary, T), torch.int32),
            LOSS_MASK: flat(draw.random(T) > 0.1, torch.uint8),
            SAMPLER_LOGPROBS: flat(draw.normal(-4.0, 0.3, T), torch.float32),
            REFERENCE_LOGPROBS: flat(draw.normal(-4.0, 0.3, T), torch.float32),
            ADVANTAGE: flat(advantage_B.repeat_interleave(response_B).numpy(), torch.float32),
            REWARD: draw.integers(0, 2, count).astype(float),
            OPTIMAL_VALUE: np.full(count, 0.5),
        }
    )
