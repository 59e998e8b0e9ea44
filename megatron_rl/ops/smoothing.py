"""Reward statistics of a prompt smoothed over its visits (ERS, PSPO). B rollouts, G prompts visited."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_moments


class Visits(NamedTuple):
    """What is remembered of each prompt."""

    mean_G: Tensor
    variance_G: Tensor
    count_G: Tensor
    """Visits so far; the other two mean nothing before the first."""


def never_visited(prompts: int, dtype: torch.dtype = torch.float64) -> Visits:
    nothing_G = torch.zeros(prompts, dtype=dtype)
    return Visits(nothing_G, nothing_G, torch.zeros(prompts, dtype=torch.int64))


def smooth(before: Visits, reward_B: Tensor, group_B: Tensor, alpha: float | Literal["1/n"], ddof: int = 1) -> Visits:
    """Statistics after one more visit of every prompt; `alpha` is the weight of the new group.

    The variance obeys the law of total variance, so it needs the raw new mean and the mean of before.
    "1/n" weighs all visits alike.
    """
    _, mean_G, variance_G = group_moments(reward_B, group_B, ddof)
    count_G = before.count_G + 1
    weight_G = 1 / count_G.to(mean_G.dtype) if alpha == "1/n" else torch.full_like(mean_G, alpha)
    is_first_G = before.count_G == 0
    weight_G = torch.where(is_first_G, 1.0, weight_G)
    old_mean_G = torch.where(is_first_G, mean_G, before.mean_G)
    old_variance_G = torch.where(is_first_G, variance_G, before.variance_G)
    moved_G = mean_G - old_mean_G
    within_G = (1 - weight_G) * old_variance_G + weight_G * variance_G
    between_G = weight_G * (1 - weight_G) * moved_G.square()
    return Visits(old_mean_G + weight_G * moved_G, within_G + between_G, count_G)


def previous_variance(before: Visits, after: Visits) -> Tensor:
    """The variance known before this visit; on the first visit its own."""
    return torch.where(before.count_G == 0, after.variance_G, before.variance_G)


def smoothed_advantage(reward_B: Tensor, group_B: Tensor, after: Visits) -> Tensor:
    """Distance of each reward to its prompt's smoothed mean, unscaled."""
    return reward_B - after.mean_G[group_B]


def scale(advantage_B: Tensor, group_B: Tensor, variance_G: Tensor, eps: float = 1e-4) -> Tensor:
    """Advantage in units of its prompt's standard deviation."""
    return advantage_B / (variance_G.sqrt() + eps)[group_B]
