"""PPO's clipped surrogate and its relatives: GRPO, Dr.GRPO, DAPO, RLOO, JSPO and PSPO differ only in its fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from megatron_rl.batch.columns import (
    ADVANTAGE,
    LOSS_WEIGHT,
    OLD_LOGPROBS,
    REFERENCE_LOGPROBS,
    REUSED,
    SAMPLER_LOGPROBS,
    Column,
)
from megatron_rl.ops.aggregation import BY_BUDGET, Aggregation, Scope, constant, token_weights
from megatron_rl.ops.aggregation import Counts as Denominators
from megatron_rl.ops.importance import Level, Truncation, importance_weights, mismatch
from megatron_rl.ops.losses import Clip, KlEstimator, clipped_surrogate, live_difference
from megatron_rl.ops.losses import kl as divergence
from megatron_rl.ops.segments import positions
from megatron_rl.ports import Counts, Priced, Tokens
from megatron_rl.spec.schema import SpecError

Divergence = Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"]
_PLAIN: dict[Divergence, KlEstimator] = {
    "k1": "k1",
    "k2": "k2",
    "k3": "k3",
    "abs": "abs",
    "k1+": "k1",
    "k3+": "k3",
    "abs+": "abs",
}


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """Raises the probability of tokens with positive advantage and lowers the others', within a trust region.

    Clipped(low=0.2, high=0.28, dual_clip=10.0) is DAPO's loss; Clipped(aggregation="seq-mean-token-sum-norm") is
    Dr.GRPO's.
    """

    low: float = 0.2
    """A ratio below 1 - low no longer pulls."""
    high: float = 0.2
    """A ratio above 1 + high no longer pushes; DAPO sets 0.28."""
    dual_clip: float | None = 3.0
    """Most that a token with negative advantage may cost, in units of its advantage; null leaves it open."""
    aggregation: Aggregation = "token-mean"
    """How token losses become one number."""
    max_response: int | None = None
    """The constant that `seq-mean-token-sum-norm` divides by; null takes `sampling.max_tokens`."""
    kl: float = 0.0
    """Weight of the divergence from the reference policy in the loss; 0 needs no reference."""
    kl_estimator: Divergence = "k3"
    """Value of the divergence per token; a plus joins it to the gradient of k2, the only right one."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    truncate: float | None = None
    """Cap of the weights that correct for the sampler's numerics; null does not correct."""
    truncate_level: Level = "token"
    """`token` and `sequence` cap the weight of each; `icepop` drops tokens outside truncate_floor..truncate."""
    truncate_floor: float = 0.5
    """Least weight that `icepop` keeps."""

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 and self.high >= 0):
            raise SpecError(f"objective clipped needs 0 <= low <= 1 and high >= 0, got {self.low!r} and {self.high!r}.")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise SpecError(f"objective clipped needs dual_clip above 1 or null, got {self.dual_clip!r}.")
        if self.max_response is not None and (self.aggregation != BY_BUDGET or self.max_response < 1):
            raise SpecError(
                f"objective clipped takes max_response, at least 1, with the aggregation {BY_BUDGET!r} and only there, "
                f"got {self.max_response!r} with {self.aggregation!r}."
            )
        if self.truncate is not None and self.truncate <= 0:
            raise SpecError(f"objective clipped needs truncate above 0 or null, got {self.truncate!r}.")

    @property
    def reads(self) -> tuple[Column, ...]:
        reference = (REFERENCE_LOGPROBS,) if self.kl else ()
        sampler = (SAMPLER_LOGPROBS, REUSED) if self.truncate is not None else ()
        return (ADVANTAGE, LOSS_WEIGHT, OLD_LOGPROBS, *reference, *sampler)

    @property
    def needs_entropy(self) -> bool:
        return self.entropy != 0

    def within(self, max_tokens: int) -> Clipped:
        """Itself, for responses of at most so many tokens: Dr.GRPO's constant is theirs where none was given."""
        return replace(self, max_response=constant(self.aggregation, self.max_response, max_tokens))

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The rows' share of the loss; denominators are those of the whole optimizer step."""
        live_T = tokens.mask_T.bool()
        log_ratio_T = live_difference(tokens.logprobs_T, tokens[OLD_LOGPROBS], live_T)
        clip = Clip(self.low, self.high, self.dual_clip)
        surrogate = clipped_surrogate(log_ratio_T, tokens[ADVANTAGE], clip)
        per_token = max(counts.tokens, 1)
        metrics = {
            "clip_fraction": (surrogate.clipped_T & live_T).sum() / per_token,
            "kl_old": -log_ratio_T.detach().sum() / per_token,
        }
        cost_T = surrogate.loss_T * tokens[LOSS_WEIGHT].to(surrogate.loss_T.dtype)[tokens.row_T]
        if self.truncate is not None:
            correction_T = self._correction(tokens, self.truncate)
            cost_T = cost_T * correction_T
            metrics["correction"] = correction_T.sum() / per_token
        if self.kl:
            divergence_T = self._divergence(tokens)
            cost_T = cost_T + self.kl * divergence_T
            metrics["kl_reference"] = torch.where(live_T, divergence_T.detach(), 0.0).sum() / per_token
        if tokens.entropy_T is not None and self.needs_entropy:
            cost_T = cost_T - self.entropy * tokens.entropy_T
        scope = Scope(Denominators(counts.tokens, counts.rows), self.max_response)
        weight_T = token_weights(self.aggregation, live_T, tokens.offsets, scope, cost_T)
        # Garbage under the mask is taken out before it meets a zero weight: NaN times zero is NaN.
        return Priced(loss=(torch.where(live_T, cost_T, 0.0) * weight_T).sum(), metrics=metrics)

    def _correction(self, tokens: Tokens, cap: float) -> Tensor:
        """Weights for the gap between trainer and sampler; a reused token was not drawn by this sampler."""
        reused_T = positions(tokens.offsets) < tokens[REUSED][tokens.row_T]
        gap_T = mismatch(tokens[OLD_LOGPROBS], tokens[SAMPLER_LOGPROBS], tokens.mask_T, reused_T)
        return importance_weights(
            gap_T, tokens.mask_T, tokens.offsets, Truncation(self.truncate_level, cap, self.truncate_floor)
        )

    def _divergence(self, tokens: Tokens) -> Tensor:
        log_ratio_T = live_difference(tokens.logprobs_T, tokens[REFERENCE_LOGPROBS], tokens.mask_T)
        return divergence(log_ratio_T, _PLAIN[self.kl_estimator], straight_through=self.kl_estimator.endswith("+"))
