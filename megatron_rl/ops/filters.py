"""Which groups are worth training on, and the penalty that keeps responses short. B rollouts, G groups."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_rl.ops.segments import group_max, group_min


def varied(metric_B: Tensor, group_B: Tensor) -> Tensor:
    """DAPO's dynamic sampling: groups whose metric is not constant. A group of one stays."""
    size_G = torch.bincount(group_B)
    return (group_max(metric_B, group_B) > group_min(metric_B, group_B)) | (size_G == 1)


def ever_solved(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """A*-PO's filter: groups with at least one strictly positive reward."""
    return group_max(reward_B, group_B) > 0


def overlong_penalty(length_B: Tensor, max_response: int, buffer: int, factor: float = 1.0) -> Tensor:
    """DAPO's soft limit: zero up to the buffer before the budget, -factor at the budget, and on along that line."""
    over_B = length_B - (max_response - buffer)
    return (-over_B / buffer * factor).clamp_max(0)
