"""The critic of PPO: a second model on the policy's ranks, cut as it is, that says a value for each token."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_rl.actor import weights
from megatron_rl.actor.build import build
from megatron_rl.actor.learner import Learner
from megatron_rl.actor.sequences import Packed
from megatron_rl.actor.settings import ActorSettings, CriticSettings
from megatron_rl.actor.value_model import ValueModel
from megatron_rl.actor.vocab_parallel import Scored
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import RETURNS, VALUES, Column
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.aggregation import Counts as Denominators
from megatron_rl.ops.aggregation import Scope, token_weights
from megatron_rl.ops.losses import value_loss
from megatron_rl.ports import Counts, Priced, Tokens, Update


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """Prices values where a policy's objective prices log-probabilities: half the clipped squared error of each."""

    clip: float | None
    reads: tuple[Column, ...] = (VALUES, RETURNS)
    needs_entropy: bool = False

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        """The tokens' share of the mean over all live tokens of the step."""
        live_T = tokens.mask_T.bool()
        value_T = torch.where(live_T, tokens.logprobs_T, 0.0)
        return_T, old_T = (torch.where(live_T, tokens[column], 0.0) for column in (RETURNS, VALUES))
        cost_T = value_loss(value_T, old_T, return_T, self.clip)
        scope = Scope(Denominators(counts.tokens, counts.rows))
        weight_T = token_weights("token-mean", live_T, tokens.offsets, scope, cost_T)
        error_T = (value_T.detach() - return_T).square()
        return Priced(
            loss=(cost_T * weight_T).sum(),
            metrics={"squared_error": (error_T * weight_T).sum(), "value": (value_T.detach() * weight_T).sum()},
        )


class MegatronCritic(Learner):
    """One rank of the critic. It starts from the policy's weights and a head of zeros."""

    def __init__(self, actor: ActorSettings, settings: CriticSettings, folder: Path) -> None:
        own = replace(actor, optimizer=settings.optimizer, update=settings.update, reference="none")
        model = build(weights.read_config(folder), own, own.precision, own.recompute, kind=ValueModel)
        model = replace(model, head=False)
        weights.load(model, settings.folder or folder)
        self.loss = ValueLoss(clip=settings.clip)
        super().__init__(own, model, _read)

    def value(self, batch: Batch) -> Ragged:
        """The value of the state before each response token."""
        return self.predict(batch)

    def update(self, batch: Batch) -> Update:
        """Moves values towards `returns`, from `values`."""
        return self.learn(batch, self.loss)


def _read(values_T1: Tensor, packed: Packed) -> Scored:
    value_S = values_T1.float().squeeze(-1)[packed.predictor_S]
    return Scored(value_S, torch.zeros_like(value_S))
