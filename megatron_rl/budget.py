"""How much of a job's time is left, judged by what its steps and saves have taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

STRETCH: Final = 1.5
"""A step or a save may take this much longer than the longest one seen."""


@dataclass(kw_only=True)
class Budget:
    """Ends a run while a save still fits before the job is killed.

    Budget(ends_at=1_763_712_000.0)
    """

    ends_at: float
    """Seconds since 1970."""
    margin_s: float = 10.0
    """Kept free at the end, for processes to leave."""
    step_s: float = 0.0
    """The longest step so far, its evaluation included."""
    save_s: float | None = None
    """The longest save so far; None until one has been measured."""
    now: Callable[[], float] = time.time

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Takes in what a step took, by phase."""
        self.step_s = max(self.step_s, sum(taken for phase, taken in seconds.items() if phase != "save"))
        if "save" in seconds:
            self.save_s = max(self.save_s or 0.0, seconds["save"])

    @property
    def needs_save(self) -> bool:
        """Whether no save has been measured: the first step of a job is saved, so that the last one surely can be."""
        return self.save_s is None

    def is_spent(self, saving_s: float = 0.0) -> bool:
        """Whether another step and the save after it might not fit, and before that one that has been on its way."""
        saves = max(self.save_s or 0.0, saving_s) * (2 if saving_s else 1)
        return self.now() + STRETCH * (self.step_s + saves) + self.margin_s > self.ends_at
