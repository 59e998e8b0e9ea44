"""Which experts a token goes to, and the sum of what they answer.

N tokens of H numbers, E experts, C of them chosen per token, M = N x C pairs of the two. A token's result hangs on the
token alone, as the decoder promises: its C answers are added in the order of the experts, whoever else went to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """The experts of each token and what their answers weigh, in float32."""

    expert_NC: Tensor
    weight_NC: Tensor


def choose(logits_NE: Tensor, count: int, normalise: bool) -> Choice:
    """The likeliest experts. Normalised, their probabilities add up to one, which is their own softmax."""
    likeliest = logits_NE.topk(count)
    if normalise:
        return Choice(likeliest.indices, likeliest.values.softmax(-1))
    return Choice(likeliest.indices, logits_NE.softmax(-1).gather(1, likeliest.indices))


def mixed(x_NH: Tensor, choice: Choice, experts: int, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The answers `answer(expert, its tokens)`, weighed and added up in float32."""
    expert_M, weight_M = choice.expert_NC.flatten(), choice.weight_NC.flatten()
    order_M = expert_M.argsort(stable=True)
    sent = torch.bincount(expert_M, minlength=experts).tolist()
    mixed_NH = torch.zeros_like(x_NH, dtype=torch.float32)
    for expert, place_M in enumerate(order_M.split(sent)):
        if len(place_M):
            row_M = place_M // choice.expert_NC.shape[1]
            answered = answer(expert, x_NH[row_M]).float()
            mixed_NH.index_add_(0, row_M, answered * weight_M[place_M, None])
    return mixed_NH.to(x_NH.dtype)
