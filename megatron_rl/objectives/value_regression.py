"""A*-PO's regression of the policy's log-ratio on the optimal advantage (arXiv 2505.20686)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.columns import OPTIMAL_VALUE, REFERENCE_LOGPROBS, REWARD, Column
from megatron_rl.ops.losses import live_difference, value_regression
from megatron_rl.ports import Counts, Priced, Tokens
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class ValueRegression:
    """Mean over rollouts of (beta2 × log-ratio to the reference − (reward − optimal value))²."""

    beta2: float = 1e-3
    """How dear it is to leave the reference policy; smaller moves farther."""

    def __post_init__(self) -> None:
        if self.beta2 <= 0:
            raise SpecError(f"objective value_regression needs beta2 above 0, got {self.beta2!r}.")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (OPTIMAL_VALUE, REFERENCE_LOGPROBS, REWARD)

    @property
    def needs_entropy(self) -> bool:
        return False

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The rows' share of the loss; a rollout without live tokens costs nothing and counts nowhere."""
        log_ratio_T = live_difference(tokens.logprobs_T, tokens[REFERENCE_LOGPROBS], tokens.mask_T)
        target_B = (tokens[REWARD] - tokens[OPTIMAL_VALUE]).to(log_ratio_T.dtype)
        regression = value_regression(log_ratio_T, tokens.mask_T, tokens.offsets, target_B, self.beta2)
        rows = max(counts.rows, 1)
        return Priced(
            loss=regression.loss_B.sum() / rows,
            metrics={
                "kl_reference": regression.log_ratio_B.detach().sum() / max(counts.tokens, 1),
                "residual_size": regression.loss_B.detach().sqrt().sum() / rows,
            },
        )
