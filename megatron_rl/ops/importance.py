"""Truncated importance sampling: weights for the gap between the trainer's and the sampler's log-probabilities.

T flat tokens. No gradient runs through a weight, and denominators keep the original mask.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from megatron_rl.ops.losses import LOG_RATIO_LIMIT, live_difference
from megatron_rl.ops.segments import row_ids, row_sum

Level = Literal["token", "sequence", "icepop"]


class Truncation(NamedTuple):
    """`token` and `sequence` cap the weight; `icepop` drops tokens whose weight lies outside floor..cap."""

    level: Level = "token"
    cap: float = 2.0
    floor: float = 0.5
    """Used by icepop only."""


def mismatch(trainer_T: Tensor, sampler_T: Tensor, mask_T: Tensor, reused_T: Tensor | None = None) -> Tensor:
    """trainer - sampler on live tokens; zero where masked and on reused tokens, which the sampler did not draw."""
    fresh_T = mask_T.bool() if reused_T is None else mask_T.bool() & ~reused_T.bool()
    return live_difference(trainer_T, sampler_T, fresh_T).detach()


def sequence_weights(mismatch_T: Tensor, offsets: Tensor, cap: float) -> Tensor:
    """Weight of each rollout: the ratio of the whole response, capped."""
    return row_sum(mismatch_T, offsets).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().clamp_max(cap)


def importance_weights(mismatch_T: Tensor, mask_T: Tensor, offsets: Tensor, truncation: Truncation) -> Tensor:
    """Weight of each token, zero where masked."""
    cap = truncation.cap
    match truncation.level:
        case "token":
            weight_T = mismatch_T.exp().clamp_max(cap)
        case "sequence":
            weight_T = sequence_weights(mismatch_T, offsets, cap)[row_ids(offsets)]
        case "icepop":
            ratio_T = mismatch_T.exp()
            weight_T = torch.where((ratio_T >= truncation.floor) & (ratio_T <= cap), ratio_T, 0.0)
        case _:
            raise ValueError(f"a truncation level is one of {', '.join(get_args(Level))}, got {truncation.level!r}")
    return torch.where(mask_T.bool(), weight_T, 0.0)
