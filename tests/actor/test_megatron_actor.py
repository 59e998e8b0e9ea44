"""The actor: any cut and any split learn the same, scores do not disturb, and the same inputs give the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor import weights
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate
from megatron_rl.actor.recompute import Recompute
from megatron_rl.batch.columns import OLD_LOGPROBS, PROMPT_TOKENS, TOKENS
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.actor.training import actor_of, contents, distance, train
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder

BATCHES = [rollouts(seed=seed) for seed in range(3)]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3", num_hidden_layers=4, tie_word_embeddings=True)


def learnt(folder: Path, export: Path, **choices: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    cut = {name: choices[name] for name in ("tp", "pp", "vpp", "dp", "cp") if name in choices}
    answers = ranks.run(train, world=Parallel(**cut).world, folder=folder, export=export, batches=BATCHES, **choices)
    for answer in answers[1:]:
        assert answer["metrics"] == answers[0]["metrics"]
        np.testing.assert_array_equal(answer["scores"], answers[0]["scores"])
    return contents(export), answers


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """One rank, one micro-batch."""
    return learnt(folder, tmp_path_factory.mktemp("alone") / "export", tokens=10_000)


@pytest.mark.parametrize(
    "choices",
    [
        {"tokens": 40},
        {"packed": False},
        {"dp": 2},
        {"dp": 2, "optimizer": {"distributed": False}},
        {"dp": 2, "optimizer": {"overlap": True}},
        {"tp": 2},
        {"tp": 2, "sequence_parallel": False},
        {"pp": 2},
        {"pp": 2, "vpp": 2},
        {"tp": 2, "pp": 2},
        {"tp": 2, "dp": 2, "packed": False},
        {"dp": 2, "pp": 2},
        {"dp": 4, "tokens": 10_000},
        {"cp": 2},
        {"cp": 2, "tokens": 10_000, "packed": False},
        {"cp": 2, "tp": 2},
        {"cp": 2, "dp": 2},
        {"cp": 2, "dp": 2, "optimizer": {"distributed": False}},
        {"cp": 2, "pp": 2},
        {"cp": 4},
    ],
    ids=str,
)
def test_any_split_gives_the_same_weights_after_three_updates(folder, alone, tmp_path, choices):
    expected, answers = alone
    result, others = learnt(folder, tmp_path / "export", **choices)
    assert distance(expected, result) <= TOLERANCE
    np.testing.assert_allclose(others[0]["scores"], answers[0]["scores"], atol=1e-4)
    for one, other in zip(answers[0]["metrics"], others[0]["metrics"], strict=True):
        for name in one.keys() - {"packing", "imbalance"}:
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


def test_weights_did_move(folder, alone):
    assert distance(contents(folder), alone[0]) > 1e-3


def test_the_same_inputs_give_the_same_bits(folder, tmp_path):
    one, first = learnt(folder, tmp_path / "one", dp=2, tp=2)
    two, second = learnt(folder, tmp_path / "two", dp=2, tp=2)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert first[0]["metrics"] == second[0]["metrics"]


@pytest.mark.parametrize(
    "cut", [{"pp": 2}, {"optimizer": {"distributed": False, "clip": 0.0}}, {"pp": 2, "dp": 2}], ids=str
)
def test_where_micro_batches_keep_their_order_weights_are_equal_to_the_bit(tmp_path, cut):
    # Without clipping: the length of the gradient is a sum over ranks, and every weight would feel its last bit.
    # Untied: a tied embedding's two gradients are summed per micro-batch on one stage, and at the end on two.
    untied = tiny_folder(tmp_path / "untied", "qwen3", tie_word_embeddings=False)
    plain = {"optimizer": {"clip": 0.0}, "tokens": 40, "dp": cut.get("dp", 1)}
    one, _ = learnt(untied, tmp_path / "one", **plain)
    other, _ = learnt(untied, tmp_path / "other", **{**plain, **cut})
    assert all(np.array_equal(one[name], other[name]) for name in one)


def scores(folder: Path, **choices: Any) -> dict[str, Any]:
    actor = actor_of(folder, reference="device", **choices)
    batch = BATCHES[0]
    before = actor.score(batch)
    update = actor.update(batch, Clipped(kl=0.1))
    after, frozen = actor.score(batch), actor.score(batch, "reference")
    again = actor.score(batch)
    return {
        "before": before.values.numpy(),
        "after": after.values.numpy(),
        "again": again.values.numpy(),
        "frozen": frozen.values.numpy(),
        "kl_old": update.metrics["kl_old"],
        "offsets": torch.equal(before.offsets, batch.ragged(TOKENS).offsets),
    }


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}, {"dp": 2}, {"cp": 2}], ids=str)
def test_the_reference_policy_stays_where_the_actor_began_and_scoring_disturbs_nothing(folder, cut):
    for answer in ranks.run(scores, world=Parallel(**cut).world, folder=folder, **cut):
        np.testing.assert_array_equal(answer["frozen"], answer["before"])
        np.testing.assert_array_equal(answer["after"], answer["again"])
        assert np.abs(answer["after"] - answer["before"]).max() > 1e-3
        assert answer["kl_old"] == 0.0
        assert answer["offsets"]


def one_and_many(folder: Path) -> dict[str, Any]:
    batch = BATCHES[0]
    given = batch.with_columns({OLD_LOGPROBS: actor_of(folder).score(batch)})
    plain = actor_of(folder).update(batch, Clipped())
    brought = actor_of(folder).update(given, Clipped())
    many = actor_of(folder, update={"steps": 2, "epochs": 2})
    two = many.update(batch, Clipped())
    return {"plain": plain.metrics, "brought": brought.metrics, "two": two, "steps": many.optimizer.progress.steps}


def test_old_log_probabilities_are_those_of_before_the_first_step_whoever_brings_them(folder):
    (answer,) = ranks.run(one_and_many, world=1, folder=folder)
    assert answer["plain"] == answer["brought"]
    assert answer["two"].steps == answer["steps"] == 4
    assert answer["two"].metrics["kl_old"] != 0.0
    assert answer["two"].metrics["tokens"] == 2 * answer["plain"]["tokens"]


def minibatches(folder: Path) -> list[list[int]]:
    actor = actor_of(folder, update={"steps": 3})
    return [sorted(rows.tolist()) for rows in actor._minibatches(BATCHES[0].take(torch.arange(12).flip(0)))]


def test_optimizer_steps_share_out_whole_groups_in_the_order_of_their_first_rollout(folder):
    (steps,) = ranks.run(minibatches, world=1, folder=folder)
    assert steps == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9, 10, 11]]


def refused(folder: Path) -> list[str]:
    said = []
    for ask in (
        lambda: actor_of(folder).score(BATCHES[0], "reference"),
        lambda: actor_of(folder, update={"steps": 9}).update(BATCHES[0], Clipped()),
    ):
        with pytest.raises(SpecError) as caught:
            ask()
        said.append(str(caught.value))
    return said


def test_what_cannot_be_done_is_said_in_one_sentence(folder):
    ((no_reference, few_groups),) = ranks.run(refused, world=1, folder=folder)
    assert "actor.reference" in no_reference
    assert "actor.update.steps is 9" in few_groups


def stop_and_go(folder: Path, saved: Path, **choices: Any) -> list[bool]:
    schedule = LearningRate(peak=1e-3, schedule="linear", warmup=2, steps=8)
    choices["optimizer"] = {**choices.get("optimizer", {}), "learning_rate": schedule}
    whole = actor_of(folder, **choices)
    whole.update(BATCHES[0], Clipped())
    whole.save(saved).result()
    resumed = actor_of(folder, **choices)
    resumed.load(saved)
    same = []
    for batch in (*BATCHES, *BATCHES[:2]):
        one, other = whole.update(batch, Clipped()), resumed.update(batch, Clipped())
        same.append(one.metrics == other.metrics)
    pairs = zip(weights.parameters(whole.model).values(), weights.parameters(resumed.model).values(), strict=True)
    return [*same, all(torch.equal(one, other) for one, other in pairs)]


@pytest.mark.parametrize(
    "choices", [{}, {"tp": 2, "pp": 2}, {"dp": 2}, {"dp": 2, "optimizer": {"distributed": False}}], ids=str
)
def test_stopping_and_going_on_is_never_having_stopped(folder, tmp_path, choices):
    world = choices.get("tp", 1) * choices.get("pp", 1) * choices.get("dp", 1)
    for answer in ranks.run(stop_and_go, world=world, folder=folder, saved=tmp_path / "saved", **choices):
        assert answer == [True] * 6


UNEVEN = rollouts(groups=6, samples=1, seed=5, lengths=[1, 2, 1, 7, 11, 30])


def scores_of_uneven_rows(folder: Path, **cut: Any) -> np.ndarray:
    return actor_of(folder, **cut).score(UNEVEN).values.numpy()


@pytest.mark.parametrize(
    "cut", [{"cp": 2}, {"cp": 2, "tp": 2}, {"cp": 2, "dp": 2}, {"cp": 2, "pp": 2}, {"cp": 4}], ids=str
)
def test_context_ranks_score_rows_of_any_length_as_one_rank_does(folder, cut):
    lengths = UNEVEN.ragged(PROMPT_TOKENS).length_B + UNEVEN.ragged(TOKENS).length_B - 1
    assert 1 in lengths
    assert (lengths % 4).any()
    (expected,) = ranks.run(scores_of_uneven_rows, world=1, folder=folder)
    for found in ranks.run(scores_of_uneven_rows, world=Parallel(**cut).world, folder=folder, **cut):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def at_temperature(folder: Path, **cut: Any) -> dict[str, np.ndarray]:
    actor = actor_of(folder, sampling=Sampling(temperature=0.7), **cut)
    return {"scores": actor.score(BATCHES[0]).values.numpy()}


@pytest.mark.parametrize("cut", [{}, {"tp": 2, "pp": 2}, {"dp": 2}, {"cp": 2, "tp": 2}], ids=str)
def test_scores_are_log_probabilities_of_transformers_under_the_sampling_law(folder, cut):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt, response in zip(BATCHES[0].ragged(PROMPT_TOKENS).rows(), BATCHES[0].ragged(TOKENS).rows(), strict=True):
        with torch.no_grad():
            logits_TV = model(torch.cat([prompt, response]).long()[None]).logits[0, len(prompt) - 1 : -1]
        expected.append(torch.log_softmax(logits_TV / 0.7, -1).gather(1, response.long()[:, None]).squeeze(1))
    for answer in ranks.run(at_temperature, world=Parallel(**cut).world, folder=folder, **cut):
        np.testing.assert_allclose(answer["scores"], torch.cat(expected), atol=1e-4)


def recomputed(folder: Path, granularity: str) -> dict[str, Any]:
    actor = actor_of(folder, recompute=Recompute(granularity=granularity))
    metrics = [dict(actor.update(batch, Clipped()).metrics) for batch in BATCHES]
    return {"metrics": metrics, "scores": actor.score(BATCHES[0]).values.tolist()}


def test_what_is_forgotten_and_computed_again_changes_no_bit(folder):
    none, selective, full = (
        ranks.run(recomputed, world=1, folder=folder, granularity=granularity)[0]
        for granularity in ("none", "selective", "full")
    )
    assert none == selective == full


def in_bf16(folder: Path, **choices: Any) -> list[float]:
    actor = actor_of(folder, precision=Precision(compute="bf16"), **choices)
    return [actor.update(batch, Clipped()).metrics["grad_norm"] for batch in BATCHES]


@pytest.mark.parametrize("distributed", [False, True])
def test_bf16_follows_fp32_as_closely_as_its_digits_allow(folder, distributed):
    expected = [metrics["grad_norm"] for metrics in ranks.run(in_fp32, world=1, folder=folder)[0]]
    (norms,) = ranks.run(in_bf16, world=1, folder=folder, optimizer={"distributed": distributed})
    np.testing.assert_allclose(norms, expected, rtol=0.05)


def in_fp32(folder: Path) -> list[dict[str, float]]:
    actor = actor_of(folder)
    return [dict(actor.update(batch, Clipped()).metrics) for batch in BATCHES]
