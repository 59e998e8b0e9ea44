"""Losses per token or per sequence, before aggregation, differentiable in the log-probabilities.

B rollouts, T flat tokens. Masked tokens are removed by `live_difference` or a where, never by multiplication with zero,
so that garbage under the mask, infinities included, touches neither value nor gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_sum, row_sum

LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


def live_difference(logprob_T: Tensor, other_T: Tensor, mask_T: Tensor) -> Tensor:
    """logprob - other on live tokens, zero elsewhere."""
    live_T = mask_T.bool()
    return torch.where(live_T, logprob_T, 0.0) - torch.where(live_T, other_T, 0.0)


class Clip(NamedTuple):
    """Bounds on the probability ratio; `dual` caps the price of a likelier bad token, None leaves it open."""

    low: float = 0.2
    high: float = 0.28
    dual: float | None = 3.0


class Surrogate(NamedTuple):
    loss_T: Tensor
    clipped_T: Tensor
    """Where the clipped branch is the larger one."""


def clipped_surrogate(log_ratio_T: Tensor, advantage_T: Tensor, clip: Clip) -> Surrogate:
    """PPO's clipped loss with dual clip, per token. Selection by where gives one branch's gradient, also on ties."""
    ratio_T = log_ratio_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    plain_T = -advantage_T * ratio_T
    bounded_T = -advantage_T * ratio_T.clamp(1 - clip.low, 1 + clip.high)
    clipped_T = bounded_T > plain_T
    loss_T = torch.where(clipped_T, bounded_T, plain_T)
    if clip.dual is not None:
        most_T = -advantage_T * clip.dual
        loss_T = torch.where((advantage_T < 0) & (loss_T > most_T), most_T, loss_T)
    return Surrogate(loss_T, clipped_T)


KlEstimator = Literal["k1", "k2", "k3", "abs"]


def kl(log_ratio_T: Tensor, estimator: KlEstimator, straight_through: bool = False) -> Tensor:
    """Per-token estimate of KL(policy || reference) from logprob - reference.

    k1 and k3 have the right value on-policy, only k2 the right gradient; `straight_through` joins the estimator's value
    to the gradient of k2.
    """
    match estimator:
        case "k1":
            value_T = log_ratio_T
        case "k2":
            value_T = log_ratio_T.square() / 2
        case "k3":
            back_T = (-log_ratio_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            value_T = (back_T.exp() - back_T - 1).clamp(-KL_LIMIT, KL_LIMIT)
        case "abs":
            value_T = log_ratio_T.abs()
        case _:
            raise ValueError(f"a KL estimator is 'k1', 'k2', 'k3' or 'abs', got {estimator!r}")
    if not straight_through:
        return value_T
    sloped_T = log_ratio_T.square() / 2
    return sloped_T - sloped_T.detach() + value_T.detach()


def value_loss(value_T: Tensor, old_value_T: Tensor, return_T: Tensor, clip: float | None = 0.5) -> Tensor:
    """Half the squared error of a critic: the worse of moving freely and moving at most `clip` from its old value."""
    free_T = (value_T - return_T).square()
    if clip is None:
        return free_T / 2
    near_T = torch.minimum(torch.maximum(value_T, old_value_T - clip), old_value_T + clip)
    return torch.maximum(free_T, (near_T - return_T).square()) / 2


class Regression(NamedTuple):
    """Per sequence; `loss_B` sums to the loss once divided by the number of live rows."""

    log_ratio_B: Tensor
    residual_B: Tensor
    loss_B: Tensor


def value_regression(log_ratio_T: Tensor, mask_T: Tensor, offsets: Tensor, target_B: Tensor, beta: float) -> Regression:
    """A*-PO: (beta D - (r - V*))^2, D the sum of the live log-ratios; a sequence without live tokens costs nothing."""
    live_B = row_sum(mask_T.bool().long(), offsets) > 0
    log_ratio_B = row_sum(torch.where(mask_T.bool(), log_ratio_T, 0.0), offsets)
    residual_B = beta * log_ratio_B - target_B
    return Regression(log_ratio_B, residual_B, torch.where(live_B, residual_B.square(), 0.0))


def rebel_residual(
    log_ratio_B: Tensor, rival_log_ratio_B: Tensor, reward_B: Tensor, rival_reward_B: Tensor, eta: float
) -> Tensor:
    """REBEL: (difference of log-ratios) / eta - (difference of rewards) per pair; the loss is its mean square."""
    return (log_ratio_B - rival_log_ratio_B) / eta - (reward_B - rival_reward_B)


def pairwise_regression(
    log_ratio_T: Tensor, mask_T: Tensor, offsets: Tensor, pairing: tuple[Tensor, Tensor], eta: float
) -> Regression:
    """REBEL over all pairs of a group, given rewards and groups of the rows; `loss_B` adds up to the groups' means.

    The mean over pairs of (x - x')^2 is twice the sample variance of x = D / eta - r, so each row has its own part.
    """
    reward_B, group_B = pairing
    live_B = row_sum(mask_T.bool().long(), offsets) > 0
    log_ratio_B = row_sum(torch.where(mask_T.bool(), log_ratio_T, 0.0), offsets)
    x_B = torch.where(live_B, log_ratio_B / eta - reward_B, 0.0)
    size_B = group_sum(live_B.to(x_B.dtype), group_B)[group_B]
    residual_B = torch.where(live_B, x_B - group_sum(x_B, group_B)[group_B] / size_B.clamp_min(1), 0.0)
    return Regression(log_ratio_B, residual_B, 2 * residual_B.square() / (size_B - 1).clamp_min(1))


def likelihood(logprob_T: Tensor, mask_T: Tensor) -> Tensor:
    """Negative log-probability of each live token."""
    return torch.where(mask_T.bool(), -logprob_T, 0.0)
