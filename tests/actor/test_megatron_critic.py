"""The critic learns the same at any cut, resumes to the bit, and leaves the policy beside it alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state

from megatron_rl.actor import groups
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.megatron_critic import ValueLoss
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.settings import ActorSettings, CriticSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import RETURNS, REWARD, TOKENS, VALUES
from megatron_rl.batch.ragged import Ragged
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.ops.losses import value_loss
from tests import ranks
from tests.fakes.priced_tokens import counts_of, slope, tokens_of
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder

BATCHES = [rollouts(seed=seed) for seed in range(3)]


def with_critic(folder: Path, **cut: Any) -> MegatronActor:
    settings = ActorSettings(
        **cut,
        precision=Precision(compute="fp32"),
        optimizer=OptimizerSettings(learning_rate=LearningRate(peak=1e-3), eps=1e-6),
        update=UpdateSettings(microbatch_tokens=40),
    )
    critic = CriticSettings(
        optimizer=OptimizerSettings(learning_rate=LearningRate(peak=1e-2), eps=1e-6, clip=0.0),
        update=UpdateSettings(microbatch_tokens=40, steps=2),
    )
    if not parallel_state.model_parallel_is_initialized():
        groups.cut(settings)
    return MegatronActor(settings, Origin(folder=folder, critic=critic))


def returns_of(batch: Batch, values: Ragged) -> Batch:
    reward_T = batch.numbers(REWARD).float()[values.row_T]
    return batch.with_columns({VALUES: values, RETURNS: Ragged(reward_T, values.offsets)})


def regress(
    folder: Path, first: int = 0, updates: int = 3, saved: Path | None = None, to: Path | None = None, **cut: Any
) -> dict:
    """Updates of critic and policy from a saved state or from the start; what both then say of the first batch."""
    actor = with_critic(folder, **cut)
    if saved is not None:
        actor.load(saved)
    found = []
    for number in range(first, updates):
        batch = BATCHES[number % 3]
        actor.update(batch, Clipped())
        found.append(dict(actor.critic.update(returns_of(batch, actor.critic.value(batch))).metrics))
    if to is not None:
        actor.save(to).result()
    values, scores = actor.critic.value(BATCHES[0]), actor.score(BATCHES[0])
    return {"metrics": found, "values": values.values.numpy(), "scores": scores.values.numpy()}


def run(folder: Path, cut: dict[str, int], **rest: Any) -> dict:
    return ranks.run(regress, world=Parallel(**cut).world, folder=folder, **cut, **rest)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Tied, so that the critic must do without an output layer that the policy shares with its embedding.
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3", num_hidden_layers=4, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict:
    return run(folder, {})


def test_it_begins_at_zero_and_learns_the_returns(folder):
    answer = run(folder, {}, updates=30)
    errors = [metrics["squared_error"] for metrics in answer["metrics"]]
    assert run(folder, {}, updates=0)["values"].tolist() == [0.0] * len(BATCHES[0].ragged(TOKENS).values)
    assert sum(errors[-3:]) < 0.6 * sum(errors[:3])


@pytest.mark.parametrize(
    "cut",
    [
        {"tp": 2},
        {"tp": 2, "sequence_parallel": False},
        {"pp": 2},
        {"dp": 2},
        {"tp": 2, "pp": 2},
        {"cp": 2},
        {"cp": 2, "tp": 2},
    ],
    ids=str,
)
def test_any_cut_learns_the_same_values(folder, alone, cut):
    answer = run(folder, cut)
    np.testing.assert_allclose(answer["values"], alone["values"], atol=2e-4)
    for one, other in zip(alone["metrics"], answer["metrics"], strict=True):
        for name in ("loss", "squared_error", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name


def test_a_saved_critic_goes_on_to_the_bit(folder, tmp_path):
    straight = run(folder, {"tp": 2})
    run(folder, {"tp": 2}, updates=2, to=tmp_path / "saved")
    resumed = run(folder, {"tp": 2}, first=2, saved=tmp_path / "saved")
    assert np.array_equal(straight["values"], resumed["values"])
    assert np.array_equal(straight["scores"], resumed["scores"])


def test_a_checkpoint_is_read_at_another_cut(folder, tmp_path):
    home = run(folder, {"tp": 2}, to=tmp_path / "saved")
    away = run(folder, {"pp": 2}, updates=0, saved=tmp_path / "saved")
    np.testing.assert_allclose(away["values"], home["values"], atol=1e-5)
    np.testing.assert_allclose(away["scores"], home["scores"], atol=1e-4)


def test_the_value_loss_is_the_mean_over_live_tokens_of_the_clipped_square():
    values_T = torch.tensor([0.0, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    mask_T = torch.tensor([1, 1, 0], dtype=torch.uint8)
    columns = {VALUES: torch.tensor([0.0, 0.0, torch.nan]), RETURNS: torch.tensor([1.0, 3.0, torch.nan])}
    tokens = tokens_of([2, 1], values_T, mask_T, {c: v.double() for c, v in columns.items()}, values_T.detach())
    priced, gradient_T = slope(ValueLoss(clip=0.5), tokens, counts_of(tokens))
    expected = value_loss(values_T[:2], torch.zeros(2), torch.tensor([1.0, 3.0]), 0.5).mean()
    torch.testing.assert_close(priced.loss, expected.detach())
    # The second has moved further than the clip allows: (0.5 - 3)^2 counts, which no longer moves it.
    assert gradient_T.tolist() == [-0.5, 0.0, 0.0]
