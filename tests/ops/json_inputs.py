"""Numbers of a golden-vector file as the flat tensors that ops take, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]
"""Parsed JSON, of any shape: the one place where the outside enters."""


def number(value: Any) -> Any:
    """The value with the strings "inf" and "-inf" as infinities, at any depth."""
    if isinstance(value, list):
        return [number(item) for item in value]
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}.get(value, value) if isinstance(value, str) else value


def tensor(value: Any) -> Tensor:
    return torch.tensor(number(value), dtype=torch.float64)


def flags(value: Any) -> Tensor:
    return torch.tensor([bool(item) for item in value], dtype=torch.bool)


def offsets_of(rows: list[list[Any]]) -> Tensor:
    return torch.tensor([0] + [len(row) for row in rows], dtype=torch.int64).cumsum(0)


def flatten(rows: list[list[Any]]) -> Tensor:
    return tensor([item for row in rows for item in row])


def flat_flags(rows: list[list[Any]]) -> Tensor:
    return flags([item for row in rows for item in row])


def group_ids(rows: list[list[Any]]) -> Tensor:
    return torch.tensor([group for group, row in enumerate(rows) for _ in row], dtype=torch.int64)


def nested(values_T: Tensor, offsets: Tensor) -> list[list[Any]]:
    return [piece.tolist() for piece in torch.split(values_T, offsets.diff().tolist())]


def like(values_T: Tensor, rows: list[list[Any]]) -> list[list[Any]]:
    return nested(values_T.detach(), offsets_of(rows))


def given(inputs: Inputs, key: str, default: Any) -> Any:
    """The input, or the default when it is absent or null."""
    value = inputs.get(key)
    return default if value is None else number(value)
