"""Counter-based noise: a number depends on its key and its position, never on what was drawn before it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def uniforms(key_N: Tensor, position_N: Tensor) -> Tensor:
    """One number in [0, 1) for each pair of a 64-bit key and a position, in float64.

    The splitmix64 generator, entered at any place of its stream: mix(key + position * golden ratio).
    """
    bits_N = _mix(_mix(key_N.to(torch.int64)) + (position_N.to(torch.int64) + 1) * _signed(0x9E3779B97F4A7C15))
    return _shift(bits_N, 11).to(torch.float64) * 2.0**-53


def fold(key: int, names: Iterable[object]) -> Tensor:
    """A 64-bit key for each name, all different from those under another key."""
    digests = (hashlib.blake2b(f"{key}/{name}".encode(), digest_size=8).digest() for name in names)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)


def _mix(bits_N: Tensor) -> Tensor:
    bits_N = (bits_N ^ _shift(bits_N, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits_N = (bits_N ^ _shift(bits_N, 27)) * _signed(0x94D049BB133111EB)
    return bits_N ^ _shift(bits_N, 31)


def _shift(bits_N: Tensor, places: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (bits_N >> places) & ((1 << (64 - places)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant
