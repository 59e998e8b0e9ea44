"""How long responses are: a log-normal distribution, cut off where the engine stops writing.

Its tail is what a rollout waits for, so the mean alone says little.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Final

POINTS: Final = 512
SHUFFLE: Final = 20_25
"""The order in which responses of all lengths come; the same in every plan."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths(mean=1000, most=4096, spread=0.8): tokens a response, those cut off at `most` included in the mean."""

    mean: float
    most: int
    spread: float = 0.8
    """Standard deviation of the length's logarithm; 0 makes all responses equally long."""

    def at(self, share: float) -> float:
        """The length that this share of responses stays below."""
        return min(float(self.most), math.exp(self._centre + self.spread * NormalDist().inv_cdf(share)))

    @property
    def cut(self) -> float:
        """The share of responses that are cut off."""
        if not self.spread:
            return float(self.mean >= self.most)
        return 1 - NormalDist(self._centre, self.spread).cdf(math.log(self.most))

    @cached_property
    def square(self) -> float:
        """The mean of the squared length, which attention pays for."""
        return sum(length**2 for length in self.draw(POINTS)) / POINTS

    def draw(self, count: int) -> list[int]:
        """So many lengths, spread evenly over the distribution, in an order that never changes."""
        return list(_drawn(self, count))

    @cached_property
    def _centre(self) -> float:
        """The logarithm of the median that gives the mean, by bisection."""
        low, high = 0.0, math.log(self.most) + 4 * self.spread + 1
        normal = NormalDist()
        steps = [self.spread * normal.inv_cdf((place + 0.5) / POINTS) for place in range(POINTS)]
        for _ in range(50):
            centre = (low + high) / 2
            found = sum(min(self.most, math.exp(centre + step)) for step in steps) / POINTS
            low, high = (centre, high) if found < self.mean else (low, centre)
        return (low + high) / 2


@lru_cache(maxsize=64)
def _drawn(lengths: Lengths, count: int) -> tuple[int, ...]:
    drawn = [max(1, round(lengths.at((place + 0.5) / count))) for place in range(count)]
    random.Random(SHUFFLE).shuffle(drawn)
    return tuple(drawn)
