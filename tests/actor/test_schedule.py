"""Megatron's schedules over packed micro-batches: results in order, gradients summed and never averaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state

from megatron_rl.actor import schedule, vocab_parallel
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.sequences import Packed, Sequences
from tests import ranks
from tests.actor.training import actor_of
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder

PARTS = ([0, 5], [3], [1, 2, 4], [6])
BATCH = rollouts(groups=7, samples=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen3", num_hidden_layers=4)


def finish(logits_TV: torch.Tensor, packed: Packed) -> schedule.Finished:
    return schedule.Finished(logits_TV.square().sum(), packed.rows.tolist())


def packed_parts() -> list[Packed]:
    sequences = Sequences(BATCH)
    return [sequences.pack(rows, 0, torch.device("cpu")) for rows in PARTS]


def passes(folder: Path, **cut: Any) -> dict[str, Any]:
    actor = actor_of(folder, optimizer={"distributed": False}, **cut)
    forward = schedule.forward(actor.model.chunks, packed_parts(), finish)
    untouched = all(not parameter.main_grad.any() for chunk in actor.model.chunks for parameter in chunk.parameters())
    both = schedule.forward_backward(actor.chunks, packed_parts(), finish)
    norm = sum(float(p.main_grad.double().square().sum()) for chunk in actor.model.chunks for p in chunk.parameters())
    return {
        "forward": forward,
        "both": both,
        "untouched": untouched,
        "norm": norm,
        "last": parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    }


def by_hand(folder: Path) -> float:
    """Squared length of the gradient of the sum, from one backward pass after another without any schedule."""
    (chunk,) = actor_of(folder, optimizer={"distributed": False}).chunks
    for packed in packed_parts():
        logits_1TV = chunk(packed.tokens_1T, None, None, packed_seq_params=packed.sequences)
        finish(logits_1TV[0], packed).loss.backward()
    return sum(float(parameter.main_grad.double().square().sum()) for parameter in chunk.parameters())


@pytest.mark.parametrize("cut", [{}, {"pp": 2}, {"pp": 2, "vpp": 2}, {"dp": 2}], ids=str)
def test_results_come_in_order_from_the_last_stage_and_gradients_are_sums(folder, cut):
    (expected,) = ranks.run(by_hand, world=1, folder=folder)
    answers = ranks.run(passes, world=Parallel(**cut).world, folder=folder, **cut)
    for answer in answers:
        assert answer["forward"] == answer["both"] == (list(PARTS) if answer["last"] else [])
        assert answer["untouched"]
    # Data ranks that do the same work leave twice the gradient, and each stage holds its own part of it.
    total = sum(answer["norm"] for answer in answers)
    copies = cut.get("dp", 1)
    np.testing.assert_allclose(total / copies, expected * copies**2, rtol=1e-5)


def logits_exist_once(folder: Path) -> bool:
    actor = actor_of(folder)
    law, places = actor.law, []

    def price(logits_TV: torch.Tensor, packed: Packed) -> schedule.Finished:
        places.append(logits_TV.data_ptr())
        scored = vocab_parallel.score(logits_TV, packed.predictor_S, packed.target_S, law)
        return schedule.Finished(scored.logprob_R.sum(), None)

    (chunk,) = actor.chunks
    logits_1TV, finished = schedule._step(price, iter(packed_parts()), chunk)
    places.append(logits_1TV.data_ptr())
    logits_1TV.register_hook(lambda gradient_1TV: places.append(gradient_1TV.data_ptr()))
    finished(logits_1TV)[0].backward()
    return len(places) == 3 and len(set(places)) == 1


def test_from_the_model_to_its_gradient_the_logits_exist_once(folder):
    assert ranks.run(logits_exist_once, world=1, folder=folder) == [True]
