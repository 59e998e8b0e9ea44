from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.actor.reference import Reference
from megatron_rl.actor.weights import parameters
from tests import ranks
from tests.actor.training import actor_of
from tests.fakes.tiny_models import tiny_folder


def swap(folder: Path, **cut: Any) -> list[bool]:
    actor = actor_of(folder, **cut)
    model = actor.model
    reference = Reference.of(model, offload=True)
    began = {key: weight.clone() for key, weight in parameters(model).items()}
    for weight in parameters(model).values():
        weight.add_(1.0)
    own = {key: (weight.data_ptr(), weight.clone()) for key, weight in parameters(model).items()}
    with reference.inside(model):
        inside = all(torch.equal(weight, began[key]) for key, weight in parameters(model).items())
    back = all(
        weight.data_ptr() == own[key][0] and torch.equal(weight, own[key][1])
        for key, weight in parameters(model).items()
    )
    with pytest.raises(KeyError), reference.inside(model):
        raise KeyError
    restored = all(weight.data_ptr() == own[key][0] for key, weight in parameters(model).items())
    return [inside, back, restored]


@pytest.mark.parametrize("cut", [{}, {"pp": 2}], ids=str)
def test_the_model_gets_its_own_tensors_back_whatever_happens_inside(tmp_path, cut):
    folder = tiny_folder(tmp_path, "qwen3", tie_word_embeddings=True)
    for answer in ranks.run(swap, world=cut.get("pp", 1), folder=folder, **cut):
        assert answer == [True, True, True]
