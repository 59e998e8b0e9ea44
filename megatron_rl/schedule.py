"""When things happen in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When things happen, in steps; 0 means never."""

    steps: Annotated[int, Ge(0)]
    """Updates of the weights that the run is made of."""
    save_every: Annotated[int, Ge(0)] = 0
    """A checkpoint after each n-th step and after the last; 0 saves only where something stops the run."""
    save_async: bool = False
    """Whether the run goes on while a checkpoint is written, from a copy in host memory; the last is waited for."""
    keep: Annotated[int, Ge(1)] = 2
    """Checkpoints kept, the newest ones."""
    evaluate_every: Annotated[int, Ge(0)] = 0
    """Held-out prompts are asked before the first step and after each n-th; 0 never."""
    max_waves: Annotated[int, Ge(1)] = 50
    """Trips to the engine without a full batch before the run stops and says so."""
    ahead: Annotated[int, Ge(0)] = 0
    """Steps by which rollouts are written ahead while the actor learns; they lag by as many versions. 0 takes turns."""
