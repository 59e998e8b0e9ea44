"""Long responses pay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import REWARD, TOKENS
from megatron_rl.ops.filters import overlong_penalty
from megatron_rl.ports import Context
from megatron_rl.spec.schema import SpecError

BUFFER_PART = 5
"""DAPO's buffer is 4096 of 20480 tokens."""


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty:
    """Lowers the reward of responses that come near the token budget (DAPO's overlong shaping); `correct` stays.

    collect: [generate, judge, overlong_penalty]    # with sampling.max_tokens 20480: along the last 4096, as published
    """

    reads = (REWARD, TOKENS)
    writes = (REWARD,)

    max_tokens: Annotated[int, Gt(0)] | None = None
    """Tokens of a response that pays the whole factor; null takes `sampling.max_tokens`."""
    buffer_tokens: Annotated[int, Gt(0)] | None = None
    """The penalty grows along a line over the last so many tokens; null takes a fifth of `max_tokens`, as DAPO does."""
    factor: Annotated[float, Gt(0)] = 1.0
    """Penalty at `max_tokens`."""

    def within(self, max_tokens: int) -> OverlongPenalty:
        """Itself, for responses of at most so many tokens."""
        longest = self.max_tokens or max_tokens
        buffer = self.buffer_tokens or max(1, longest // BUFFER_PART)
        if not longest - max_tokens < buffer <= longest:
            raise SpecError(
                f"stage overlong_penalty lets responses pay from {longest - buffer} to {longest} tokens, and "
                f"sampling.max_tokens is {max_tokens}: take a buffer_tokens of at most max_tokens, and a max_tokens "
                "that responses come near, or leave both out."
            )
        return replace(self, max_tokens=longest, buffer_tokens=buffer)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        if self.max_tokens is None or self.buffer_tokens is None:
            raise ValueError("overlong_penalty has no lengths; give it both, or take what `within` returns")
        length_B = batch.ragged(TOKENS).length_B
        penalty_B = overlong_penalty(length_B, self.max_tokens, self.buffer_tokens, self.factor)
        shaped = batch.with_columns({REWARD: batch.numbers(REWARD) + penalty_B})
        return shaped.with_metrics({"overlong_penalty/mean": float(penalty_B.double().mean())}), memory
