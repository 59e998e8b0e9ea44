"""Baselines of sequence-level rewards, and the advantages defined directly by their group.

B rollouts, G groups (the rollouts of one prompt; n of them). Row order and group sizes are free.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import Moments, group_moments, sum_of_others


class Shrinkage(NamedTuple):
    """A baseline per rollout and, per prompt, what its weight was made of."""

    baseline_B: Tensor
    weight_G: Tensor
    """lambda: the share of the other prompts' mean."""
    noise_G: Tensor
    """v: variance of a prompt's mean, estimated from the other prompts."""
    spread_G: Tensor
    """s: population variance of the other prompts' means."""
    others_mean_G: Tensor


def shrinkage(reward_B: Tensor, group_B: Tensor) -> Shrinkage:
    """Baseline per rollout: its prompt's leave-one-out mean, pulled towards the other prompts' mean.

    James-Stein weight (JSPO): (n-1)/n * noise / (noise + spread), both from the other prompts, so the gradient
    stays unbiased.
    """
    moments = group_moments(reward_B, group_B)
    noise_G, spread_G, others_mean_G = _other_prompts(moments)
    count = len(noise_G)
    weight_G = torch.where(noise_G > 0, (count - 1) / max(count, 1) * noise_G / (noise_G + spread_G), 0.0)
    return _shrink(reward_B, group_B, moments, Shrinkage(reward_B, weight_G, noise_G, spread_G, others_mean_G))


def shrinkage_as_released(reward_B: Tensor, group_B: Tensor, guard: float = 1e-6) -> Shrinkage:
    """JSPO's released weight, for comparison: without (n-1)/n, and with a guard that is always in the denominator."""
    moments = group_moments(reward_B, group_B)
    noise_G, spread_G, others_mean_G = _other_prompts(moments)
    weight_G = torch.where(noise_G > 0, noise_G / (noise_G + spread_G + guard), 0.0)
    return _shrink(reward_B, group_B, moments, Shrinkage(reward_B, weight_G, noise_G, spread_G, others_mean_G))


def _other_prompts(moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, spread and mean of all prompts but one, for each prompt; zeros when it is alone.

    Measured from the median prompt: the others lie near it even when the prompt left out is an outlier, so squares
    do not cancel.
    """
    count = len(moments.mean_G)
    if count < 2:
        zero_G = torch.zeros_like(moments.mean_G)
        return zero_G, zero_G, zero_G
    centre = moments.mean_G.median()
    from_centre_G = moments.mean_G - centre
    others_from_centre_G = sum_of_others(from_centre_G) / (count - 1)
    spread_G = sum_of_others(from_centre_G.square()) / (count - 1) - others_from_centre_G.square()
    repeated_G = (moments.size_G >= 2).to(from_centre_G.dtype)
    noise_G = sum_of_others(moments.variance_G * repeated_G) / sum_of_others(repeated_G).clamp_min(1) / moments.size_G
    return noise_G, spread_G.clamp_min(0), centre + others_from_centre_G


def _shrink(reward_B: Tensor, group_B: Tensor, moments: Moments, evidence: Shrinkage) -> Shrinkage:
    # A single rollout has no mean of its own, and takes all it gets from the other prompts.
    alone_G = moments.size_G == 1
    weight_G = torch.where(alone_G, float(len(alone_G) > 1), evidence.weight_G)
    baseline_B = torch.lerp(rloo(reward_B, group_B), evidence.others_mean_G[group_B], weight_G[group_B])
    return evidence._replace(baseline_B=baseline_B, weight_G=weight_G)


def rloo(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Baseline per rollout: the mean of the other rollouts of its prompt, zero when there is none."""
    size_G, mean_G, _ = group_moments(reward_B, group_B)
    mean_B, size_B = mean_G[group_B], size_G[group_B]
    return torch.where(size_B > 1, mean_B - (reward_B - mean_B) / (size_B - 1).clamp_min(1), 0.0)


def bloo(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Baseline per rollout: the mean over the other prompts of their means, zero when there is none."""
    return _other_prompts(group_moments(reward_B, group_B))[2][group_B]


def centred(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """Dr.GRPO's advantage: the distance to the group mean. A group of one keeps its reward."""
    size_G, mean_G, _ = group_moments(reward_B, group_B)
    return reward_B - torch.where(size_G > 1, mean_G, 0.0)[group_B]


def grpo(reward_B: Tensor, group_B: Tensor, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """GRPO's advantage: the centred reward over the group's standard deviation, one for a group of one."""
    size_G, _, variance_G = group_moments(reward_B, group_B, ddof)
    deviation_G = torch.where(size_G > 1, variance_G.sqrt(), 1.0)
    return centred(reward_B, group_B) / (deviation_G[group_B] + eps)


def remax(reward_B: Tensor, greedy_reward_B: Tensor) -> Tensor:
    """ReMax's advantage: the reward above that of the prompt's greedy rollout, which is not trained on."""
    return reward_B - greedy_reward_B


class ShrinkageRisk(NamedTuple):
    """What shrinking by a weight costs, in mean squared error of the baseline."""

    own_noise: Tensor
    """v^2: error of the leave-one-out prompt mean."""
    weight_paper: Tensor
    weight_exact: Tensor
    error_own: Tensor
    error_others: Tensor
    error_paper: Tensor
    error_exact: Tensor


def shrinkage_risk(reward_variance: Tensor, mean_variance: Tensor, prompts: int, rollouts: int) -> ShrinkageRisk:
    """Population optimum of the shrinkage weight and the errors around it (JSPO, theory).

    `reward_variance` is E[sigma^2] within prompts, `mean_variance` is s^2 = Var(mu) between them.
    """
    if prompts < 2 or rollouts < 2:
        raise ValueError(
            f"shrinkage needs at least 2 prompts of 2 rollouts to weigh, got {prompts} prompts of {rollouts}"
        )
    own = reward_variance / (rollouts - 1)
    others = prompts / (prompts - 1) * mean_variance + reward_variance / (rollouts * (prompts - 1))

    def error(weight: Tensor) -> Tensor:
        return (1 - weight).square() * own + weight.square() * others

    paper = torch.where(own > 0, (prompts - 1) / prompts * own / (own + mean_variance), 0.0)
    exact = torch.where(own > 0, own / (own + others), 0.0)
    return ShrinkageRisk(own, paper, exact, own, others, error(paper), error(exact))
