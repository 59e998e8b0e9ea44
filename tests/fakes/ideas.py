"""Ideas of a user's own, found by import path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from megatron_rl.actor.precision import Precision, Recipe

Mode = Literal["token", "row"]


@dataclass(frozen=True, kw_only=True)
class Price:
    """Prices tokens.

    In some way.
    """

    slot: ClassVar[str] = "price"
    reads = ()

    low: Annotated[float, Ge(0), Le(1)] = 0.2
    """How far down. Or not; who knows."""
    mode: Mode = "token"
    """What is averaged."""
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] | None = None
    table: Mapping[str, float] = field(default_factory=dict)
    folder: Path = Path("here")
    recipe: Recipe = "delayed"
    precision: Precision = Precision(compute="fp32")
    odd: complex = 1j
    """A type no YAML has."""

    def __post_init__(self) -> None:
        if self.low == 0.5:
            raise ValueError("low is 0.5, which is never right; take another")


@dataclass(frozen=True, kw_only=True)
class Dearer(Price):
    """A price with one more key."""

    more: int


class Heir(Mapping):
    """Inherits from what cannot be read here."""

    own: int = 1


def compute_score(solution: str, truth: str) -> float:
    """A function as a user has it."""
    return float(solution == truth)
