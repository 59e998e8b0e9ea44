"""Megatron's optimizers as they are set up here: against plain AdamW, with the state a reshardable checkpoint needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.actor.recipe import LearningRate
from megatron_rl.objectives.likelihood import Likelihood
from tests import ranks
from tests.actor.training import actor_of
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model"), "qwen2")


def against_plain(folder: Path, distributed: bool, clip: float) -> list[float]:
    """Largest difference of each parameter to a copy that torch's AdamW moved by the same gradients."""
    rate = LearningRate(peak=1e-3, schedule="linear", warmup=2, steps=8)
    chosen = {"distributed": distributed, "clip": clip, "weight_decay": 0.1, "learning_rate": rate}
    actor = actor_of(folder, optimizer=chosen)
    originals = list(actor.model.chunks[0].parameters())
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in originals]
    settings = actor.settings.optimizer
    plain = torch.optim.AdamW(
        [
            {"params": [copy for copy in copies if copy.dim() > 1], "weight_decay": 0.1},
            {"params": [copy for copy in copies if copy.dim() == 1], "weight_decay": 0.0},
        ],
        betas=settings.betas,
        eps=settings.eps,
    )
    for seed in range(4):
        for group in plain.param_groups:
            group["lr"] = actor.optimizer.learning_rate
        actor.update(rollouts(seed=seed), Likelihood())
        for original, copy in zip(originals, copies, strict=True):
            copy.grad = original.main_grad.clone()
        if clip and not distributed:
            # Clipping happened in place, in the gradients that were just read.
            assert sum(float(copy.grad.square().sum()) for copy in copies) ** 0.5 <= clip * 1.001
        elif clip:
            torch.nn.utils.clip_grad_norm_(copies, clip)
        plain.step()
    return [float((one - two).abs().max()) for one, two in zip(originals, copies, strict=True)]


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_weights_move_as_under_adamw_with_decay_on_matrices_only(folder, distributed, clip):
    (differences,) = ranks.run(against_plain, world=1, folder=folder, distributed=distributed, clip=clip)
    assert max(differences) < 2e-6


def saved_state(folder: Path, distributed: bool) -> dict[str, Any]:
    """What the optimizer would save."""
    chosen = {"distributed": distributed}
    actor = actor_of(folder, dp=2, optimizer=chosen)
    for seed in range(2):
        actor.update(rollouts(seed=seed), Likelihood())
    (inner,) = actor.optimizer.megatron.chained_optimizers
    saved = inner.state_dict()
    groups = saved["optimizer"]["param_groups"] if distributed else saved["param_groups"]
    return {
        "steps": [group["step"] for group in groups],
        "kept": sorted({name for state in inner.optimizer.state.values() for name in state}),
    }


@pytest.mark.parametrize("distributed", [False, True])
def test_state_has_the_shape_of_the_fused_optimizers(folder, distributed):
    for answer in ranks.run(saved_state, world=2, folder=folder, distributed=distributed):
        assert set(answer["steps"]) == {2}
        assert answer["kept"] == ["exp_avg", "exp_avg_sq"]


def norms(folder: Path, **cut: Any) -> list[float]:
    actor = actor_of(folder, **cut)
    return [actor.update(rollouts(seed=seed), Likelihood()).metrics["grad_norm"] for seed in range(2)]


def test_every_rank_knows_the_length_of_the_whole_gradient(folder):
    (expected,) = ranks.run(norms, world=1, folder=folder)
    for cut in ({"tp": 2, "pp": 2}, {"dp": 2}, {"dp": 2, "optimizer": {"distributed": False}}):
        world = cut.get("tp", 1) * cut.get("pp", 1) * cut.get("dp", 1)
        for answer in ranks.run(norms, world=world, folder=folder, **cut):
            np.testing.assert_allclose(answer, expected, rtol=1e-4)
