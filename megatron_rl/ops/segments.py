"""Groups and ragged rows of flat tensors: their sums, moments, heads and joins.

B rollouts, G groups, T flat tokens. `group_B` holds dense ids 0..G-1 in any order; row b of a ragged tensor is
`x_T[offsets[b]:offsets[b + 1]]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Rows = tuple[Tensor, Tensor]
"""Flat values and their offsets."""


class Moments(NamedTuple):
    """Size, mean and variance of each group."""

    size_G: Tensor
    mean_G: Tensor
    variance_G: Tensor


def group_count(group_B: Tensor) -> int:
    return int(group_B.max()) + 1 if len(group_B) else 0


def group_sum(x_B: Tensor, group_B: Tensor) -> Tensor:
    return x_B.new_zeros(group_count(group_B)).index_add(0, group_B, x_B)


def group_max(x_B: Tensor, group_B: Tensor) -> Tensor:
    return _group_reduce(x_B, group_B, "amax")


def group_min(x_B: Tensor, group_B: Tensor) -> Tensor:
    return _group_reduce(x_B, group_B, "amin")


def _group_reduce(x_B: Tensor, group_B: Tensor, reduce: str) -> Tensor:
    return x_B.new_zeros(group_count(group_B)).scatter_reduce(0, group_B, x_B, reduce, include_self=False)


def group_moments(x_B: Tensor, group_B: Tensor, ddof: int = 1) -> Moments:
    """Moments about each group's smallest member: a constant group has its exact mean and a variance of exactly zero.

    A group of one has variance zero.
    """
    size_G = torch.bincount(group_B, minlength=group_count(group_B))
    anchor_G = group_min(x_B, group_B)
    above_B = x_B - anchor_G[group_B]
    mean_above_G = group_sum(above_B, group_B) / size_G
    deviation_B = above_B - mean_above_G[group_B]
    variance_G = group_sum(deviation_B.square(), group_B) / (size_G - ddof).clamp_min(1)
    return Moments(size_G, anchor_G + mean_above_G, variance_G)


def sum_of_others(x_G: Tensor) -> Tensor:
    """For each entry the sum of all other entries: those before plus those after, since total minus own cancels."""
    before_G = torch.cat([x_G.new_zeros(1), x_G.cumsum(0)[:-1]])
    after_G = torch.cat([x_G.new_zeros(1), x_G.flip(0).cumsum(0)[:-1]]).flip(0)
    return before_G + after_G


def row_ids(offsets: Tensor) -> Tensor:
    """The row of each flat token."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


def positions(offsets: Tensor) -> Tensor:
    """The place of each flat token in its row."""
    return torch.arange(int(offsets[-1]), device=offsets.device) - offsets[row_ids(offsets)]


def row_sum(x_T: Tensor, offsets: Tensor) -> Tensor:
    return x_T.new_zeros(len(offsets) - 1).index_add(0, row_ids(offsets), x_T)


def to_offsets(length_B: Tensor) -> Tensor:
    return torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])


def kept(x_T: Tensor, mask_T: Tensor) -> Tensor:
    """The values under the mask; without a copy where that is all of them, as it is in most batches."""
    return x_T if bool(mask_T.all()) else x_T[mask_T.bool()]


def put_back(x_N: Tensor, mask_T: Tensor) -> Tensor:
    """Values of the tokens under the mask where those tokens are, zero elsewhere."""
    if bool(mask_T.all()):
        return x_N
    return x_N.new_zeros(len(mask_T)).masked_scatter(mask_T.bool(), x_N)


def live_offsets(mask_T: Tensor, offsets: Tensor) -> Tensor:
    """Offsets of the rows once only the tokens under the mask are kept."""
    if bool(mask_T.all()):
        return offsets
    return to_offsets(row_sum(mask_T.to(torch.int64), offsets))


def head(rows: Rows, length_B: Tensor) -> Rows:
    """The first `length_B` values of each row."""
    values_T, offsets = rows
    kept_T = positions(offsets) < length_B[row_ids(offsets)]
    return values_T[kept_T], to_offsets(torch.minimum(length_B, offsets.diff()))


def join(first: Rows, second: Rows) -> Rows:
    """Each row of `first` followed by the same row of `second`."""
    offsets = first[1] + second[1]
    joined_T = first[0].new_empty(int(offsets[-1]))
    joined_T[offsets[row_ids(first[1])] + positions(first[1])] = first[0]
    after_B = offsets[:-1] + first[1].diff()
    joined_T[after_B[row_ids(second[1])] + positions(second[1])] = second[0].to(first[0].dtype)
    return joined_T, offsets
