"""Screening prompts with a few rollouts before paying for the rest (SPEED-RL): the rule, its odds, bias and cost.

B rollouts, G prompts; `p` is a prompt's pass rate, any shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_sum


class Screened(NamedTuple):
    pass_rate_G: Tensor
    accept_G: Tensor


def classify(correct_B: Tensor, group_B: Tensor, low: float = 0.0, high: float = 1.0) -> Screened:
    """Accept the prompts whose pass rate lies strictly between the bounds."""
    correct_B = correct_B.to(torch.float64)
    pass_rate_G = group_sum(correct_B, group_B) / group_sum(torch.ones_like(correct_B), group_B)
    return Screened(pass_rate_G, (pass_rate_G > low) & (pass_rate_G < high))


def accept_probability(p: Tensor, screen: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Odds that `screen` rollouts have a pass rate strictly between the bounds."""
    solved = torch.arange(screen + 1, dtype=p.dtype, device=p.device)
    inside = (solved / screen > low) & (solved / screen < high)
    log_ways = (
        torch.lgamma(torch.tensor(screen + 1.0, dtype=p.dtype))
        - solved.add(1).lgamma()
        - (screen - solved).add(1).lgamma()
    )
    log_odds = log_ways + torch.xlogy(solved, p[..., None]) + torch.special.xlog1py(screen - solved, -p[..., None])
    return torch.sum(log_odds.exp() * inside, -1)


def mixed_probability(p: Tensor, rollouts: int) -> Tensor:
    """Odds that a group is neither all wrong nor all right: 1 - p^n - (1-p)^n, to full precision near p of 0 and 1."""
    if rollouts < 2:
        return torch.zeros_like(p)
    rarer = torch.minimum(p, 1 - p)
    return -torch.expm1(rollouts * torch.log1p(-rarer)) - rarer.pow(rollouts)


class Selection(NamedTuple):
    """What acceptance at the default bounds does to a group; undefined where it never happens (p of 0 or 1)."""

    accept_probability: Tensor
    screen_mean: Tensor
    """Expected pass rate of the screening rollouts, given acceptance."""
    train_mean: Tensor
    """The same of all rollouts."""
    gradient_scale: Tensor
    """c(p): scale of the expected RLOO gradient when the screening rollouts are trained on too."""


def selection(p: Tensor, screen: int, more: int) -> Selection:
    """Bias of training on the `screen` rollouts that were selected on, with `more` drawn after.

    A group's variance counts the pairs that differ: within the screening part all of them were seen given acceptance.
    """
    total = screen + more
    accept = mixed_probability(p, screen)
    spread = p * (1 - p)
    screen_mean = (p - p.pow(screen)) / accept
    across = screen * more * (screen_mean * (1 - p) + (1 - screen_mean) * p) / spread
    pairs = screen * (screen - 1) / accept + across + more * (more - 1)
    train_mean = (screen * screen_mean + more * p) / total
    return Selection(accept, screen_mean, train_mean, pairs / (total * (total - 1)))


class Cost(NamedTuple):
    accept_rate: Tensor
    screened_rollouts: Tensor
    """Rollouts per trained prompt when screening first."""
    dynamic_rollouts: Tensor
    """The same when full groups are drawn and constant ones dropped."""


def cost(pass_rate_G: Tensor, screen: int, more: int) -> Cost:
    """Expected rollouts for one trained prompt; infinite where none is ever accepted."""
    accept_rate = mixed_probability(pass_rate_G, screen).mean()
    mixed_rate = mixed_probability(pass_rate_G, screen + more).mean()
    return Cost(accept_rate, screen / accept_rate + more, (screen + more) / mixed_rate)


class Signal(NamedTuple):
    snr_bound: Tensor
    improvement_factor: Tensor


def signal(p: Tensor, rollouts: int) -> Signal:
    """Bound 4 N p (1-p) on a prompt's gradient signal-to-noise ratio, and the improvement (1 - 1/SNR)/2 it allows."""
    bound = 4 * rollouts * p * (1 - p)
    return Signal(bound, (1 - 1 / bound) / 2)
