"""A*-PO's regression of the policy's log-ratio on the optimal advantage (arXiv 2505.20686)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from megatron_rl.batch.columns import (
    LOSS_WEIGHT,
    OLD_LOGPROBS,
    OPTIMAL_VALUE,
    REFERENCE_LOGPROBS,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
    Column,
)
from megatron_rl.ops.importance import mismatch, sequence_weights
from megatron_rl.ops.losses import live_difference, value_regression
from megatron_rl.ops.segments import positions
from megatron_rl.ports import Counts, Priced, Tokens
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class ValueRegression:
    """Mean over rollouts of (beta2 × log-ratio to the reference − (reward − optimal value))²."""

    beta2: float = 1e-3
    """How dear it is to leave the reference policy; smaller moves farther."""
    truncate: float | None = None
    """Cap of the weight that corrects a whole response for the sampler's numerics; null does not correct."""

    def __post_init__(self) -> None:
        if self.beta2 <= 0:
            raise SpecError(f"objective value_regression needs beta2 above 0, got {self.beta2!r}.")
        if self.truncate is not None and self.truncate <= 0:
            raise SpecError(f"objective value_regression needs truncate above 0 or null, got {self.truncate!r}.")

    @property
    def reads(self) -> tuple[Column, ...]:
        sampler = (OLD_LOGPROBS, SAMPLER_LOGPROBS, REUSED) if self.truncate is not None else ()
        return (OPTIMAL_VALUE, REFERENCE_LOGPROBS, REWARD, LOSS_WEIGHT, *sampler)

    @property
    def needs_entropy(self) -> bool:
        return False

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The rows' share of the loss; a rollout without live tokens costs nothing and counts nowhere."""
        log_ratio_T = live_difference(tokens.logprobs_T, tokens[REFERENCE_LOGPROBS], tokens.mask_T)
        target_B = (tokens[REWARD] - tokens[OPTIMAL_VALUE]).to(log_ratio_T.dtype)
        regression = value_regression(log_ratio_T, tokens.mask_T, tokens.offsets, target_B, self.beta2)
        weight_B = tokens[LOSS_WEIGHT].to(log_ratio_T.dtype)
        if self.truncate is not None:
            weight_B = weight_B * self._correction(tokens, self.truncate)
        rows, scaled_B = max(counts.rows, 1), self.beta2 * regression.log_ratio_B.detach()
        return Priced(
            loss=(regression.loss_B * weight_B).sum() / rows,
            metrics={
                "kl_reference": regression.log_ratio_B.detach().sum() / max(counts.tokens, 1),
                "residual_size": regression.loss_B.detach().sqrt().sum() / rows,
                "scaled_log_ratio": scaled_B.sum() / rows,
                "scaled_log_ratio_square": scaled_B.square().sum() / rows,
            },
        )

    def _correction(self, tokens: Tokens, cap: float) -> Tensor:
        """Weights of whole responses; reused tokens were not drawn by this sampler and have no part in them."""
        reused_T = positions(tokens.offsets) < tokens[REUSED][tokens.row_T]
        gap_T = mismatch(tokens[OLD_LOGPROBS], tokens[SAMPLER_LOGPROBS], tokens.mask_T, reused_T)
        return sequence_weights(gap_T, tokens.offsets, cap)
