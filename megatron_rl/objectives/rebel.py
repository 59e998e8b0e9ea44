"""REBEL's regression of differences of log-ratios on differences of rewards, between rollouts of one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.batch.columns import GROUP, LOSS_WEIGHT, OLD_LOGPROBS, REWARD, Column
from megatron_rl.ops.losses import live_difference, pairwise_regression
from megatron_rl.ports import Counts, Priced, Tokens
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class Rebel:
    """Mean over prompts, and over the pairs of their rollouts, of (Δ log-ratio / eta − Δ reward)².

    It reads `group`, so micro-batches keep groups whole.
    """

    least_rollouts: ClassVar = 2

    eta: float = 1.0
    """How far a difference of rewards may move the policy."""

    def __post_init__(self) -> None:
        if self.eta <= 0:
            raise SpecError(f"objective rebel needs eta above 0, got {self.eta!r}.")

    @property
    def reads(self) -> tuple[Column, ...]:
        return (GROUP, REWARD, OLD_LOGPROBS, LOSS_WEIGHT)

    @property
    def needs_entropy(self) -> bool:
        return False

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The groups' share of the loss; a rollout without live tokens takes part in no pair."""
        log_ratio_T = live_difference(tokens.logprobs_T, tokens[OLD_LOGPROBS], tokens.mask_T)
        rewards_B = tokens[REWARD].to(log_ratio_T.dtype)
        group_B = torch.unique(tokens[GROUP], return_inverse=True)[1]
        regression = pairwise_regression(log_ratio_T, tokens.mask_T, tokens.offsets, (rewards_B, group_B), self.eta)
        weight_B = tokens[LOSS_WEIGHT].to(log_ratio_T.dtype)
        groups = max(counts.groups, 1)
        return Priced(
            loss=(regression.loss_B * weight_B).sum() / groups,
            metrics={
                "kl_old": -log_ratio_T.detach().sum() / max(counts.tokens, 1),
                "residual_square": regression.loss_B.detach().sum() / groups,
            },
        )
