from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.parallel import Parallel
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.actor.training import contents, distance, train
from tests.fakes.rollouts import rollouts
from tests.fakes.tiny_models import tiny_folder, tiny_model

BATCHES = [rollouts(seed=seed) for seed in range(3)]


def config() -> dict[str, Any]:
    return tiny_model("qwen3_moe").config.to_dict()


def test_experts_are_counted_under_either_name_and_some_layers_have_none():
    published = config() | {"num_experts": config()["num_local_experts"]}
    for hf in (config(), published):
        architecture = describe(hf)
        assert (architecture.shape.experts, architecture.shape.expert_ffn) == (4, 32)
        assert architecture.shape.dense_layers == (1,)
        assert (architecture.routing.chosen, architecture.routing.normalise) == (2, True)


def test_a_mixture_that_does_not_say_how_many_experts_it_has_is_refused():
    with pytest.raises(SpecError, match="num_local_experts"):
        describe({key: value for key, value in config().items() if key != "num_local_experts"})


def test_a_switch_the_family_file_does_not_compute_is_refused():
    with pytest.raises(SpecError, match="attention_bias = True, but the actor computes only False"):
        describe({**config(), "attention_bias": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("mixture"), "qwen3_moe")


def learnt(folder: Path, export: Path, **choices: Any) -> dict[str, np.ndarray]:
    cut = {name: choices[name] for name in ("tp", "pp", "dp", "ep") if name in choices}
    ranks.run(train, world=Parallel(**cut).world, folder=folder, export=export, batches=BATCHES, **choices)
    return contents(export)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return learnt(folder, tmp_path_factory.mktemp("alone") / "export", tokens=10_000)


@pytest.mark.parametrize(
    "choices",
    [{"tokens": 40}, {"tp": 2}, {"dp": 2}, {"dp": 2, "ep": 2}, {"tp": 2, "ep": 2}, {"pp": 2, "dp": 2, "ep": 2}],
    ids=str,
)
def test_experts_dealt_and_cut_any_way_learn_the_same(folder, alone, tmp_path, choices):
    assert distance(alone, learnt(folder, tmp_path / "export", **choices)) <= 1e-5


def test_the_router_learns(folder, alone):
    before = contents(folder)
    routers = [name for name in before if name.endswith("mlp.gate.weight")]
    assert len(routers) == 3
    assert all(np.abs(alone[name] - before[name]).max() > 1e-4 for name in routers)
