"""Prompts drawn by priority, and the weights that undo it (PPS, PSPO).

B rollouts, G groups, D prompts of the data set, N draws.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_max, group_sum


def priorities(
    advantage_B: Tensor, group_B: Tensor, scheme: Literal["average", "max", "last"] = "average", eps: float = 1e-6
) -> Tensor:
    """Priority per group: the size of its advantages. Only "last", the last rollout in row order, depends on order."""
    size_B = advantage_B.abs()
    if scheme == "max":
        return group_max(size_B, group_B) + eps
    if scheme == "last":
        row_B = torch.arange(len(group_B), device=group_B.device)
        return size_B[group_max(row_B, group_B)] + eps
    if scheme == "average":
        return group_sum(size_B, group_B) / group_sum(torch.ones_like(size_B), group_B) + eps
    raise ValueError(f"a priority scheme is 'average', 'max' or 'last', got {scheme!r}")


def floored(priority_D: Tensor, share: float = 0.05) -> Tensor:
    """Priorities lifted to a share of their mean, so that a prompt once dead is drawn again."""
    return priority_D.clamp_min(share * float(priority_D.mean()))


def probabilities(priority_D: Tensor, exponent: float = 0.6) -> Tensor:
    power_D = priority_D.pow(exponent)
    return power_D / power_D.sum()


class DrawWeights(NamedTuple):
    """Importance weights of the prompts of one batch, raw and over two maxima."""

    raw_N: Tensor
    over_batch_N: Tensor
    over_all_N: Tensor


def draw_weights(probability_D: Tensor, drawn_N: Tensor, beta: float = 0.4) -> DrawWeights:
    """(1 / (D P))^beta of the drawn prompts; with beta 1 a weighted draw estimates the uniform mean."""
    raw_D = (len(probability_D) * probability_D).pow(-beta)
    raw_N = raw_D[drawn_N]
    largest = raw_N.max() if len(raw_N) else raw_D.max()
    return DrawWeights(raw_N, raw_N / largest, raw_N / raw_D.max())


def draw(probability_D: Tensor, uniform_D: Tensor, count: int) -> Tensor:
    """Distinct prompts, in the law of successive renormalised draws, first drawn first.

    Each prompt waits an exponential time with rate P; the first `count` arrivals win.
    """
    possible = int((probability_D > 0).sum())
    if count > possible:
        raise ValueError(f"cannot draw {count} distinct prompts, only {possible} have a probability above 0")
    tiny = torch.finfo(uniform_D.dtype).tiny
    arrival_D = torch.where(probability_D > 0, -torch.log(uniform_D.clamp_min(tiny)) / probability_D, torch.inf)
    return torch.argsort(arrival_D, stable=True)[:count]


def pick(probability_D: Tensor, point_N: Tensor) -> Tensor:
    """For each point of [0, 1] the first prompt, in data order, at which the cumulative probability reaches it."""
    return torch.searchsorted(probability_D.cumsum(0), point_N).clamp_max(len(probability_D) - 1)
