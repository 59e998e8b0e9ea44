"""Every prompt once an epoch, in a fresh order each epoch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.memory import Memory
from megatron_rl.drawing import requests, stream
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Draws `prompts` prompts a wave. Its memory is how many have been drawn, which is also the next group's number."""

    slot: ClassVar[str] = "uniform"
    writes = DRAWN

    prompts: Annotated[int, Ge(1)] = 128
    """Prompts one update learns from."""
    samples: Annotated[int, Ge(1)] = 8
    """Rollouts of each prompt."""
    wave: Annotated[int, Ge(1)] | None = None
    """Prompts drawn a trip to the engine, where a filter drops some of them; none means `prompts`."""
    max_age: Annotated[int, Ge(0)] | None = None
    """Groups left over from a wave are dropped when more updates old than this: 0 is DAPO's, null keeps all."""
    shuffle: bool = True
    """Off keeps the order of the file."""

    def draw(self, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        drawn = _drawn(memory)
        size = len(context.prompts.ids)
        picks = list(itertools.islice(stream(context, size, drawn, self.shuffle), self.wave or self.prompts))
        return requests(context, picks, self.samples, first_group=drawn), {"drawn": drawn + len(picks)}

    def observe(self, batch: Batch, memory: Memory, context: Context) -> Memory:  # the same whatever came back
        return memory


def _drawn(memory: Memory) -> int:
    drawn = memory["drawn"] if isinstance(memory, Mapping) else 0
    if not isinstance(drawn, int):
        raise TypeError(f"uniform's memory holds the number of prompts drawn, got {drawn!r}")
    return drawn
