"""What an engine of ours must know of a model besides its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron_rl.reshard.layout import ModelShape


@dataclass(frozen=True, kw_only=True, eq=False)
class Blueprint:
    """A decoder of the Llama kind: Blueprint(shape=..., context=4096, norm_eps=1e-6, inverse_R=..., ...)."""

    shape: ModelShape
    context: int
    """Most tokens of a prompt with its response."""
    norm_eps: float
    inverse_R: Tensor
    """Rotation per position of each pair of a head's numbers."""
    magnitude: float = 1.0
    """Factor on rotated queries and keys."""
    qkv_bias: bool = False
    qk_norm: bool = False
    experts_per_token: int = 0
    """How many of a layer's experts a token goes to, where it has experts."""
    experts_normalised: bool = False
    """Whether the weights of a token's experts add up to one."""
