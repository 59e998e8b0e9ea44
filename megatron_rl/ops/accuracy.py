"""How good a policy is on held-out prompts, and how sure that is. B rollouts, G prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_sum

NORMAL_95 = 1.959963984540054


class Estimate(NamedTuple):
    """A mean over prompts with its 95% interval."""

    mean: float
    low: float
    high: float


def pass_at(k: int, correct_B: Tensor, prompt_B: Tensor) -> Tensor:
    """Per prompt the chance that at least one of k rollouts is right: 1 - C(n-c, k) / C(n, k), unbiased for n >= k."""
    count_G = group_sum(torch.ones_like(correct_B, dtype=torch.float64), prompt_B)
    if bool((count_G < k).any()):
        raise ValueError(f"pass@{k} needs {k} rollouts of every prompt, got as few as {int(count_G.min())}")
    wrong_G = count_G - group_sum(correct_B.double(), prompt_B)
    step_K = torch.arange(k, dtype=torch.float64)
    factor_GK = ((wrong_G[:, None] - step_K) / (count_G[:, None] - step_K)).clamp_min(0)
    return 1 - factor_GK.prod(1)


def majority(extracted: Sequence[str], correct_B: Tensor, prompt_B: Tensor) -> Tensor:
    """Per prompt the share of the most frequent answers that are right; ties share the vote, no answer is no vote."""
    votes: list[Counter[str]] = [Counter() for _ in range(int(prompt_B.max()) + 1)]
    is_right: list[dict[str, float]] = [{} for _ in votes]
    for answer, right, prompt in zip(extracted, correct_B.tolist(), prompt_B.tolist(), strict=True):
        if answer:
            votes[prompt][answer] += 1
            is_right[prompt][answer] = float(right)
    return torch.tensor([_leader_is_right(count, right) for count, right in zip(votes, is_right, strict=True)])


def _leader_is_right(votes: Counter[str], is_right: dict[str, float]) -> float:
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    return sum(is_right[answer] for answer in leaders) / len(leaders)


def estimate(score_G: Tensor) -> Estimate:
    """Mean over prompts of scores in [0, 1] with Wilson's interval, for as many draws as their spread is worth.

    Scores averaged over rollouts vary less than single draws; prompts that all agree still count as one draw each.
    """
    prompts = len(score_G)
    mean = float(score_G.double().mean())
    squared_error = float(score_G.double().var()) / prompts if prompts > 1 else 0.0
    draws = max(prompts, mean * (1 - mean) / squared_error) if squared_error > 0 else float(prompts)
    shrink = 1 + NORMAL_95**2 / draws
    centre = (mean + NORMAL_95**2 / (2 * draws)) / shrink
    reach = NORMAL_95 * math.sqrt(mean * (1 - mean) / draws + (NORMAL_95 / (2 * draws)) ** 2) / shrink
    return Estimate(mean, min(mean, max(0.0, centre - reach)), max(mean, min(1.0, centre + reach)))
