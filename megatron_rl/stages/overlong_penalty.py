"""Long responses pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import REWARD, TOKENS
from megatron_rl.ops.filters import overlong_penalty
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty:
    """Lowers the reward of responses that come near the token budget (DAPO's overlong shaping); `correct` stays.

    collect: [generate, judge, overlong_penalty: {max_tokens: 20480, buffer_tokens: 4096}]
    """

    reads = (REWARD, TOKENS)
    writes = (REWARD,)

    max_tokens: Annotated[int, Gt(0)] = 20480
    """Tokens of a response that pays the whole factor."""
    buffer_tokens: Annotated[int, Gt(0)] = 4096
    """The penalty grows along a line over the last so many tokens."""
    factor: Annotated[float, Gt(0)] = 1.0
    """Penalty at `max_tokens`."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        length_B = batch.ragged(TOKENS).length_B
        penalty_B = overlong_penalty(length_B, self.max_tokens, self.buffer_tokens, self.factor)
        shaped = batch.with_columns({REWARD: batch.numbers(REWARD) + penalty_B})
        return shaped.with_metrics({"overlong_penalty/mean": float(penalty_B.double().mean())}), memory
