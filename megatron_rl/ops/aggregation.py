"""From token losses to one number: a weight per token, its denominators counted over the whole optimiser step.

B rollouts, T flat tokens. The loss of any part of a batch is the sum of loss times weight over it, so splits add up.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from torch import Tensor

from megatron_rl.ops.segments import row_ids, row_sum

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"]
BY_BUDGET: Final = "seq-mean-token-sum-norm"
"""The only mode with a constant, Dr.GRPO's: normally the most tokens that a response may have."""


class Counts(NamedTuple):
    """Live tokens, and rows with at least one, of the global batch of an optimiser step."""

    tokens: int
    rows: int


def count(mask_T: Tensor, offsets: Tensor) -> Counts:
    live_T = mask_T.bool().long()
    return Counts(int(live_T.sum()), int((row_sum(live_T, offsets) > 0).sum()))


class Scope(NamedTuple):
    """What a weight needs to know of the step: global counts, and the response budget of the normed mode."""

    counts: Counts
    max_response: int | None = None


def constant(mode: Aggregation, given: int | None, budget: int) -> int | None:
    """The constant of a mode: what was given, or else the response budget; none for a mode without one."""
    return budget if mode == BY_BUDGET and given is None else given


def token_weights(mode: Aggregation, mask_T: Tensor, offsets: Tensor, scope: Scope, like_T: Tensor) -> Tensor:
    """Weight of each token's loss, zero where masked, in the floating type of `like_T`.

    Rows must be whole, since the mean within a sequence divides by its own live tokens.
    """
    live_T = mask_T.to(like_T.dtype)
    tokens, rows = max(scope.counts.tokens, 1), max(scope.counts.rows, 1)
    match mode:
        case "token-sum":
            return live_T
        case "token-mean":
            return live_T / tokens
        case "seq-mean-token-sum":
            return live_T / rows
        case "seq-mean-token-mean":
            return live_T / (rows * row_sum(live_T, offsets).clamp_min(1)[row_ids(offsets)])
        case "seq-mean-token-sum-norm":
            if scope.max_response is None:
                raise ValueError(f"aggregation '{BY_BUDGET}' divides by the response budget; give max_response")
            return live_T / (rows * scope.max_response)
    raise ValueError(f"an aggregation is one of {', '.join(get_args(Aggregation))}, got {mode!r}")
