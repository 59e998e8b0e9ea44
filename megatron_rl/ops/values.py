"""Values: soft-optimal ones (A*-PO), discounted sums and generalised advantages, whitening.

B rollouts, G groups, T flat tokens, V answers of a finite set.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_max, group_moments, group_sum, live_offsets, row_ids


def optimal_value(reward_B: Tensor, group_B: Tensor, beta: float) -> Tensor:
    """V* per group: beta ln mean exp(r / beta) over samples of the reference; at 0 the maximum, at inf the mean."""
    top_G = group_max(reward_B, group_B)
    if beta == 0:
        return top_G
    size_G, mean_G, _ = group_moments(reward_B, group_B)
    if beta == math.inf:
        return mean_G
    # expm1 and log1p: a large beta leaves only digits that 1 + x would lose.
    below_B = torch.expm1((reward_B - top_G[group_B]) / beta)
    return top_G + beta * torch.log1p(group_sum(below_B, group_B) / size_G)


def optimal_value_of_rate(p: Tensor, beta: float) -> Tensor:
    """V* of a 0/1 reward with pass rate p: beta ln(1 + p (e^(1/beta) - 1)), without its overflow."""
    if beta == 0:
        return (p > 0).to(p.dtype)
    if beta >= 1:
        return p if beta == math.inf else beta * torch.log1p(p * math.expm1(1 / beta))
    return beta * torch.logaddexp(p.log() + 1 / beta, torch.log1p(-p))


class OptimalPolicy(NamedTuple):
    """The KL-regularised optimum over a finite answer set; beta ln(policy / reference) equals the advantage."""

    policy_V: Tensor
    value: Tensor
    advantage_V: Tensor
    objective: Tensor
    """Expected reward less beta KL of that policy, computed as such; equals `value`."""


def optimal_policy(reference_V: Tensor, reward_V: Tensor, beta: float) -> OptimalPolicy:
    tilted_V = reference_V.log() + reward_V / beta
    value = beta * torch.logsumexp(tilted_V, 0)
    advantage_V = reward_V - value
    policy_V = torch.softmax(tilted_V, 0)
    log_ratio_V = torch.where(policy_V > 0, (policy_V / reference_V).log(), 0.0)
    return OptimalPolicy(policy_V, value, advantage_V, (policy_V * (reward_V - beta * log_ratio_V)).sum())


def discounted_sum(x_T: Tensor, offsets: Tensor, decay: float) -> Tensor:
    """At each token the sum of x from there to the end of its row, decayed per step; log2(longest row) operations."""
    row_T = row_ids(offsets)
    sum_T, stride, longest = x_T, 1, int(offsets.diff().max()) if len(offsets) > 1 else 0
    while stride < longest:
        same_row = row_T[stride:] == row_T[:-stride]
        reach_T = torch.where(same_row, decay**stride * sum_T[stride:], 0.0)
        sum_T = torch.cat([sum_T[:-stride] + reach_T, sum_T[-stride:]])
        stride *= 2
    return sum_T


def whiten(x_T: Tensor, mask_T: Tensor) -> Tensor:
    """Live tokens at mean zero and sample variance one (plus 1e-8 under the root); zero elsewhere."""
    live_T = mask_T.bool()
    live_N = x_T[live_T]
    deviation_N = live_N - live_N.mean()
    variance = deviation_N.square().sum() / max(len(live_N) - 1, 1)
    return torch.zeros_like(x_T).masked_scatter(live_T, deviation_N * torch.rsqrt(variance + 1e-8))


class Tokens(NamedTuple):
    """Rewards and values at tokens, of which those under the mask are live."""

    reward_T: Tensor
    value_T: Tensor
    mask_T: Tensor
    offsets: Tensor


class Estimate(NamedTuple):
    """Generalised advantages, not whitened, and the returns a critic regresses on; zero where not live."""

    advantage_T: Tensor
    return_T: Tensor


def gae(tokens: Tokens, gamma: float, lam: float) -> Estimate:
    """GAE(gamma, lambda) along the live tokens of each row; the value after the last is zero."""
    live_T = tokens.mask_T.bool()
    offsets = live_offsets(live_T, tokens.offsets)
    reward_N, value_N = tokens.reward_T[live_T], tokens.value_T[live_T]
    row_N = row_ids(offsets)
    goes_on_N = torch.cat([row_N[1:] == row_N[:-1], row_N.new_zeros(min(len(row_N), 1), dtype=torch.bool)])
    next_value_N = torch.where(goes_on_N, value_N.roll(-1), 0.0)
    advantage_N = discounted_sum(reward_N + gamma * next_value_N - value_N, offsets, gamma * lam)
    nothing_T = torch.zeros_like(tokens.value_T)
    return Estimate(
        nothing_T.masked_scatter(live_T, advantage_N), nothing_T.masked_scatter(live_T, advantage_N + value_N)
    )


def reward_to_go(reward_B: Tensor, mask_T: Tensor, offsets: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted return at each live token of a reward paid at the last live one; REINFORCE++ whitens it."""
    live_T = mask_T.bool()
    live_row_N = row_ids(offsets)[live_T]
    is_last_N = torch.cat(
        [live_row_N[1:] != live_row_N[:-1], live_row_N.new_ones(min(len(live_row_N), 1), dtype=torch.bool)]
    )
    paid_N = torch.where(is_last_N, reward_B[live_row_N], 0.0)
    return_N = discounted_sum(paid_N, live_offsets(live_T, offsets), gamma)
    return torch.zeros(len(mask_T), dtype=reward_B.dtype, device=reward_B.device).masked_scatter(live_T, return_N)
