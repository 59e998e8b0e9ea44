"""Maximum likelihood of given responses: supervised warm starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_rl.batch.columns import LOSS_WEIGHT, Column
from megatron_rl.ops.aggregation import BY_BUDGET, Aggregation, Scope, constant, token_weights
from megatron_rl.ops.aggregation import Counts as Denominators
from megatron_rl.ops.losses import likelihood
from megatron_rl.ports import Counts, Priced, Tokens
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Negative log-probability of each response token."""

    aggregation: Aggregation = "token-mean"
    """How token losses become one number."""
    max_response: int | None = None
    """The constant that `seq-mean-token-sum-norm` divides by; null takes `sampling.max_tokens`."""

    def __post_init__(self) -> None:
        if self.max_response is not None and (self.aggregation != BY_BUDGET or self.max_response < 1):
            raise SpecError(
                f"objective likelihood takes max_response, at least 1, with the aggregation {BY_BUDGET!r} and only "
                f"there, got {self.max_response!r} with {self.aggregation!r}."
            )

    @property
    def reads(self) -> tuple[Column, ...]:
        return (LOSS_WEIGHT,)

    @property
    def needs_entropy(self) -> bool:
        return False

    def within(self, max_tokens: int) -> Likelihood:
        """Itself, for responses of at most so many tokens."""
        return replace(self, max_response=constant(self.aggregation, self.max_response, max_tokens))

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The rows' share of the loss."""
        cost_T = likelihood(tokens.logprobs_T, tokens.mask_T)
        scope = Scope(Denominators(counts.tokens, counts.rows), self.max_response)
        weight_T = token_weights(self.aggregation, tokens.mask_T, tokens.offsets, scope, cost_T)
        plain = cost_T.detach().sum() / max(counts.tokens, 1)
        loss = (cost_T * tokens[LOSS_WEIGHT].to(cost_T.dtype)[tokens.row_T] * weight_T).sum()
        return Priced(loss=loss, metrics={"nll": plain})
