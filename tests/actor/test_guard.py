"""A number that is not finite, wherever it comes from: found in the same step on every rank, and never trained on."""

import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from megatron.core import parallel_state

from megatron_rl.actor.guard import tainted_rows
from megatron_rl.actor.megatron_actor import MegatronActor
from megatron_rl.actor.parallel import Parallel
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, GROUP, LOSS_MASK, REWARD, SAMPLER_LOGPROBS, SLOT, TOKENS, Column
from megatron_rl.batch.ragged import Ragged
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.ports import Counts, NotFinite, Priced, Tokens
from tests import ranks
from tests.actor.training import actor_of
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder

BAD_ROW, RARE_TOKEN = 5, 100


def _good() -> Batch:
    """Random rollouts, numbered by slot; the rare token is the first of the bad row's response and nowhere else."""
    batch = rollouts(vocabulary=RARE_TOKEN, lengths=[4] * 12)
    tokens = batch.ragged(TOKENS)
    values_T = tokens.values.clone()
    values_T[int(tokens.offsets[BAD_ROW])] = RARE_TOKEN
    mask = batch.ragged(LOSS_MASK)
    return batch.with_columns(
        {
            TOKENS: Ragged(values_T, tokens.offsets),
            LOSS_MASK: mask._replace(values=torch.ones_like(mask.values)),
            SLOT: list(range(12)),
        }
    )


GOOD = _good()
T = len(GOOD.ragged(TOKENS).values)
Where = Literal["reward", "advantage", "log-probability", "loss", "gradient"]
PLACES: tuple[Where, ...] = ("reward", "advantage", "log-probability", "loss", "gradient")


@dataclass(frozen=True)
class Poisoned:
    """A clipped objective whose loss, or whose gradient alone, is NaN from the bad row on."""

    where: Where
    inner: Clipped = field(default_factory=Clipped)

    @property
    def reads(self) -> tuple[Column, ...]:
        return (*self.inner.reads, REWARD)

    @property
    def needs_entropy(self) -> bool:
        return False

    def price(self, tokens: Tokens, counts: Counts) -> Priced:
        priced = self.inner.price(tokens, counts)
        marked_B = tokens[REWARD] == 7.0
        if not marked_B.any():
            return priced
        if self.where == "loss":
            return Priced(loss=priced.loss * math.nan, metrics=priced.metrics)
        # The square root of zero: its value is finite, its slope is not.
        return Priced(loss=priced.loss + (tokens.logprobs_T * 0).sum().abs().sqrt(), metrics=priced.metrics)


def poisoned(where: Where) -> tuple[Batch, Any]:
    reward_B = GOOD.numbers(REWARD).clone()
    advantage = GOOD.ragged(ADVANTAGE)
    if where == "reward":
        reward_B[BAD_ROW] = math.nan
        return GOOD.with_columns({REWARD: reward_B}), Clipped()
    if where == "advantage":
        values_T = advantage.values.clone()
        values_T[int(advantage.offsets[BAD_ROW])] = math.inf
        return GOOD.with_columns({ADVANTAGE: Ragged(values_T, advantage.offsets)}), Clipped()
    if where == "log-probability":
        return GOOD, Clipped()
    reward_B[BAD_ROW] = 7.0
    return GOOD.with_columns({REWARD: reward_B}), Poisoned(where)


def state_of(actor: MegatronActor) -> list[Any]:
    """Every number that learning moves: weights, moments, steps, rates."""
    tensors = [parameter.data for chunk in actor.model.chunks for parameter in chunk.parameters()]
    inner = [chained.optimizer for chained in actor.optimizer.megatron.chained_optimizers]
    tensors += [moment for optimizer in inner for state in optimizer.state.values() for moment in state.values()]
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for optimizer in inner
        for group in optimizer.param_groups
    ]
    return [[tensor.numpy().tobytes() for tensor in tensors], groups, actor.optimizer.progress.steps]


@contextmanager
def unreadable(actor: MegatronActor) -> Iterator[None]:
    """While this lasts the embedding of the rare token is NaN, and so is what follows it in the only row it is in."""
    spoilt = []
    for chunk in actor.model.chunks:
        for name, parameter in chunk.named_parameters():
            if name.startswith("embedding."):
                row = RARE_TOKEN - parallel_state.get_tensor_model_parallel_rank() * len(parameter)
                spoilt += [parameter.data[row]] if 0 <= row < len(parameter) else []
    kept = [embedding.clone() for embedding in spoilt]
    for embedding in spoilt:
        embedding.fill_(math.nan)
    yield
    for embedding, values in zip(spoilt, kept, strict=True):
        embedding.copy_(values)


def skip_one(folder: Path, where: Where, **cut: Any) -> dict[str, Any]:
    actor = actor_of(folder, **cut)
    actor.update(GOOD, Clipped())
    batch, objective = poisoned(where)
    with unreadable(actor) if where == "log-probability" else nullcontext():
        before = state_of(actor)
        update = actor.update(batch, objective)
        same = state_of(actor) == before
    after = actor.update(GOOD, Clipped())
    assert update.offending is not None
    return {
        "skipped": (update.skipped, update.steps),
        "offending": update.offending.numbers(SLOT).tolist(),
        "same": same,
        "recovered": (after.skipped, after.steps, math.isfinite(after.metrics["loss"])),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("cut", [{}, {"dp": 2, "pp": 2}, {"tp": 2}, {"cp": 2}], ids=str)
def test_the_step_is_skipped_everywhere_and_leaves_every_bit_as_it_was(folder, where, cut):
    answers = ranks.run(skip_one, world=Parallel(**cut).world, folder=folder, where=where, **cut)
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["skipped"] == (1, 0)
    assert answers[0]["same"]
    assert answers[0]["recovered"] == (0, 1, True)


@pytest.mark.parametrize("where", ["reward", "advantage", "log-probability"])
def test_the_offending_rows_are_named_where_a_row_can_be(folder, where):
    (answer,) = ranks.run(skip_one, world=1, folder=folder, where=where)
    assert answer["offending"] == [BAD_ROW]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_offending_rows_are_those_of_the_micro_batch_or_step_where_only_a_sum_is_known(folder, where):
    (answer,) = ranks.run(skip_one, world=1, folder=folder, where=where)
    assert BAD_ROW in answer["offending"]


def keeps_failing(folder: Path) -> tuple[list[int], bytes]:
    actor = actor_of(folder, update={"steps": 2, "max_skipped": 2})
    batch, objective = poisoned("advantage")
    skipped = [actor.update(batch, objective).skipped, actor.update(GOOD, Clipped()).skipped]
    first = BAD_ROW // 3
    group = batch.where(batch.group_index() == first)
    with pytest.raises(NotFinite) as caught:
        actor.update(Batch.concat([group, group.with_columns({GROUP: [first + 10] * 3})]), objective)
    return skipped, pickle.dumps(caught.value)


def test_the_run_stops_after_so_many_in_a_row_and_the_error_brings_the_rows(folder):
    ((skipped, pickled),) = ranks.run(keeps_failing, world=1, folder=folder)
    error = pickle.loads(pickled)
    assert skipped == [1, 0]
    assert error.steps == 2
    assert error.offending.numbers(SLOT).tolist() == [BAD_ROW]
    assert "2 optimizer steps in a row" in str(error)


def test_only_columns_that_matter_are_looked_at():
    batch = GOOD.with_columns(
        {SAMPLER_LOGPROBS: GOOD.ragged(SAMPLER_LOGPROBS)._replace(values=torch.full((T,), math.nan))}
    )
    assert not tainted_rows(batch, Clipped().reads).any()
    assert tainted_rows(batch, Clipped(truncate=2.0).reads).all()


def test_masked_tokens_may_hold_anything():
    mask, advantage = GOOD.ragged(LOSS_MASK), GOOD.ragged(ADVANTAGE)
    at = int(mask.offsets[BAD_ROW])
    mask_T, advantage_T = mask.values.clone(), advantage.values.clone()
    mask_T[at], advantage_T[at : at + 2] = 0, math.nan
    batch = GOOD.with_columns({ADVANTAGE: advantage._replace(values=advantage_T)})
    assert tainted_rows(batch, Clipped().reads).nonzero().flatten().tolist() == [BAD_ROW]
    mask_T[at + 1] = 0
    masked = batch.with_columns({LOSS_MASK: mask._replace(values=mask_T)})
    assert not tainted_rows(masked, Clipped().reads).any()
