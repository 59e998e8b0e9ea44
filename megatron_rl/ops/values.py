"""Values: soft-optimal ones (A*-PO), discounted sums and generalised advantages, whitening.

B rollouts, G groups, T flat tokens, V answers of a finite set.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_rl.ops.segments import Rows, group_max, group_moments, group_sum, kept, live_offsets, put_back, row_ids

_BLOCK = 32_768
"""Tokens that are summed together: a few hundred KiB."""


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
    """At each token the sum of x from there to the end of its row, decayed per step; log2(longest row) operations.

    Block by block of whole rows, since these operations wait for memory wherever a block does not fit the cache.
    """
    row_block_B = offsets[:-1] // _BLOCK
    first = torch.unique_consecutive(row_block_B, return_counts=True)[1].cumsum(0)
    starts = [0, *offsets[first].tolist()]
    left_T = offsets[1:][row_ids(offsets)] - torch.arange(len(x_T), device=x_T.device)
    blocks = [slice(*ends) for ends in pairwise(starts)]
    return torch.cat([x_T[:0], *(_summed(x_T[block], left_T[block], decay) for block in blocks)])


def _summed(x_T: Tensor, left_T: Tensor, decay: float) -> Tensor:
    """The sums, where each token has so many left in its row, itself included."""
    sum_T, stride, longest = x_T.clone(), 1, int(left_T.max()) if len(left_T) else 0
    while stride < longest:
        reach_T = torch.where(left_T[:-stride] > stride, decay**stride * sum_T[stride:], 0.0)
        sum_T[:-stride] += reach_T
        stride *= 2
    return sum_T


def whiten(x_T: Tensor, mask_T: Tensor) -> Tensor:
    """Live tokens at mean zero and sample variance one (plus 1e-8 under the root); zero elsewhere."""
    live_N = kept(x_T, mask_T)
    if len(live_N) < 2:
        return torch.zeros_like(x_T)
    # From the first, as all are where all are equal: of 1000.1 many times over, single precision has not the mean.
    above_N = live_N - live_N[0]
    scale = torch.rsqrt(above_N.var() + 1e-8)  # summed in double precision, as a dot product would not be
    return put_back(above_N.sub_(above_N.mean()).mul_(scale), mask_T)


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
    mask_T = tokens.mask_T
    offsets = live_offsets(mask_T, tokens.offsets)
    reward_N, value_N = kept(tokens.reward_T, mask_T), kept(tokens.value_T, mask_T)
    row_N = row_ids(offsets)
    goes_on_N = torch.cat([row_N[1:] == row_N[:-1], row_N.new_zeros(min(len(row_N), 1), dtype=torch.bool)])
    next_value_N = torch.where(goes_on_N, value_N.roll(-1), 0.0)
    advantage_N = discounted_sum(reward_N + gamma * next_value_N - value_N, offsets, gamma * lam)
    return Estimate(put_back(advantage_N, mask_T), put_back(advantage_N + value_N, mask_T))


def outcome_gae(reward_B: Tensor, values: Rows, mask_T: Tensor, gamma: float, lam: float) -> Estimate:
    """`gae` of a reward paid at the last live token; at lambda 1 the values between cancel, and none is summed."""
    value_T, offsets = values
    if lam == 1:
        return_T = reward_to_go(reward_B, mask_T, offsets, gamma)
        return Estimate(put_back(kept(return_T, mask_T) - kept(value_T, mask_T), mask_T), return_T)
    # With no discount left, the return of a token is what is paid at that token.
    return gae(Tokens(reward_to_go(reward_B, mask_T, offsets, gamma=0.0), value_T, mask_T, offsets), gamma, lam)


def reward_to_go(reward_B: Tensor, mask_T: Tensor, offsets: Tensor, gamma: float = 1.0) -> Tensor:
    """Discounted return at each live token of a reward paid at the last live one; REINFORCE++ whitens it."""
    live = live_offsets(mask_T, offsets)
    # Torch would first write an index as long as the result.
    return_N = torch.from_numpy(np.repeat(reward_B.numpy(), live.diff().numpy()))
    if gamma != 1:
        wait_N = live[1:][row_ids(live)] - 1 - torch.arange(len(return_N), device=return_N.device)
        return_N = return_N * gamma ** wait_N.to(return_N.dtype)
    return put_back(return_N, mask_T)
