"""Rotary positions of packed sequences: the angles once for all layers of a micro-batch, then one turn each way.

T tokens, H heads, D numbers per head, R = D / 2 angles per token: one for each pair of a number in the first half of
a head and its fellow in the second.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Turns(NamedTuple):
    """Of every token's angles the cosine, and the sine as it enters: negative for the first half of a head."""

    cosine_T1D: Tensor
    sine_T1D: Tensor


def turns(positions_T: Tensor, inverse_R: Tensor, dtype: torch.dtype) -> Turns:
    """The angles, computed in float32 and stored in the type of what they turn."""
    angle_T1R = torch.outer(positions_T.float(), inverse_R)[:, None]
    cosine_T1R, sine_T1R = angle_T1R.cos(), angle_T1R.sin()
    return Turns(
        torch.cat((cosine_T1R, cosine_T1R), -1).to(dtype),
        torch.cat((-sine_T1R, sine_T1R), -1).to(dtype),
    )


def rotated(heads_THD: Tensor, by: Turns) -> Tensor:
    """Each head with its two halves turned against one another."""
    turned_THD: Tensor = _Rotation.apply(heads_THD, *by)
    return turned_THD


class _Rotation(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing but the angles is kept for it."""

    @staticmethod
    def forward(ctx: Any, heads_THD: Tensor, cosine_T1D: Tensor, sine_T1D: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(cosine_T1D, sine_T1D)
        return torch.addcmul(heads_THD * cosine_T1D, _halves_swapped(heads_THD), sine_T1D)

    @staticmethod
    def backward(ctx: Any, gradient_THD: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        cosine_T1D, sine_T1D = ctx.saved_tensors
        back_THD = torch.addcmul(gradient_THD * cosine_T1D, _halves_swapped(gradient_THD), sine_T1D, value=-1)
        return back_THD, None, None


def _halves_swapped(heads_THD: Tensor) -> Tensor:
    return heads_THD.roll(heads_THD.shape[-1] // 2, -1)
