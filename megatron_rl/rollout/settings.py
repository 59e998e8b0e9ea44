"""What a user may choose about rollouts, whatever engine writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from megatron_rl.ops.logprobs import Sampling


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """The law tokens are drawn from, and where a response ends."""

    temperature: Annotated[float, Ge(0), Lt(math.inf)] = 1.0
    """Divides the logits; 0 takes the likeliest token."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Keeps the likeliest tokens that together reach this mass."""

    top_k: Annotated[int, Ge(0)] = 0
    """Keeps this many of the likeliest tokens; 0 keeps all."""

    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Keeps tokens at least this likely relative to the likeliest."""

    max_tokens: Annotated[int, Ge(1)] = 1024
    """Most tokens of a response."""

    stop: tuple[str, ...] = ()
    """Texts that end a response; what completes one is kept. The model's end token always ends it."""

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ValueError("a stop text is empty, which would end every response at once; leave it out")

    @property
    def law(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)
