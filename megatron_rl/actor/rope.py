"""Rotary frequencies of every supported scaling rule. R is half a head: one frequency for each pair of its numbers."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.actor.architecture import Architecture, real


class Frequencies(NamedTuple):
    """What a scaling rule changes: the angles per position, and the size of what is rotated."""

    inverse_R: Tensor
    magnitude: float = 1.0
    """Factor on rotated queries and on rotated keys, so attention scores carry its square."""


def frequencies(architecture: Architecture) -> Frequencies:
    """Angles per position of this architecture."""
    rope = architecture.rope
    head_dim = architecture.shape.head_dim
    exponent_R = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return RULES[rope.scaling](1.0 / rope.theta**exponent_R, {**dict(rope.parameters), "rope_theta": rope.theta})


def _default(plain_R: Tensor, _parameters: Mapping[str, float]) -> Frequencies:
    return Frequencies(plain_R)


def _linear(plain_R: Tensor, parameters: Mapping[str, float]) -> Frequencies:
    """Position interpolation (arXiv 2306.15595): every angle shrinks alike."""
    return Frequencies(plain_R / real(parameters, "factor"))


def _llama3(plain_R: Tensor, parameters: Mapping[str, float]) -> Frequencies:
    """Llama 3.1: long waves shrink by the factor, short ones stay, those between are blended by their wavelength."""
    low, high = real(parameters, "low_freq_factor"), real(parameters, "high_freq_factor")
    turns_R = real(parameters, "original_max_position_embeddings") * plain_R / (2 * math.pi)
    kept_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return Frequencies(torch.lerp(plain_R / real(parameters, "factor"), plain_R, kept_R))


def _yarn(plain_R: Tensor, parameters: Mapping[str, float]) -> Frequencies:
    """YaRN (arXiv 2309.00071, eq. 22-24): a ramp over frequencies between shrinking and staying, and larger scores."""
    factor = real(parameters, "factor")
    context = real(parameters, "original_max_position_embeddings")
    R = plain_R.numel()

    def index(turns: float) -> float:
        """Where on the ladder of frequencies a wave makes so many turns within the original context."""
        return R * math.log(context / (turns * 2 * math.pi)) / math.log(real(parameters, "rope_theta"))

    first, last = index(real(parameters, "beta_fast", 32.0)), index(real(parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * R - 1)
    width = last - first if last != first else 1e-3
    shrunk_R = ((torch.arange(R, dtype=torch.float32) - first) / width).clamp(0, 1)
    return Frequencies(torch.lerp(plain_R, plain_R / factor, shrunk_R), _yarn_magnitude(factor, parameters))


def _yarn_magnitude(factor: float, parameters: Mapping[str, float]) -> float:
    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return real(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return grown(real(parameters, "mscale")) / grown(real(parameters, "mscale_all_dim"))
    return grown(1.0)


RULES: Mapping[str, Callable[[Tensor, Mapping[str, float]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""By name, the names of `architecture.CONSTANTS`, which has seen to it that every constant is there."""
