from typing import Any

import numpy as np
import pytest
import torch

from megatron_rl.actor import groups
from megatron_rl.actor import recompute as recomputation
from megatron_rl.actor.attention import packing
from megatron_rl.actor.build import build
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import Recompute
from megatron_rl.spec.schema import SpecError
from tests import ranks
from tests.fakes.tiny_models import tiny_model

LENGTHS = (6, 6, 3, 1)


def gradients(cut: dict[str, Any], recompute: dict[str, Any]) -> dict[str, np.ndarray]:
    parallel = Parallel(**cut)
    groups.cut(parallel, seed=3)
    config = tiny_model("qwen3", num_hidden_layers=3).config.to_dict()
    (chunk,) = build(config, parallel, Precision(compute="fp32"), Recompute(**recompute)).chunks
    tokens = torch.randint(0, 101, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
    logits = chunk(tokens, None, None, packed_seq_params=packing(LENGTHS, torch.device("cpu")))
    logits.log_softmax(-1)[..., 0].sum().backward()
    return {name: parameter.grad.numpy() for name, parameter in chunk.named_parameters()}


@pytest.mark.parametrize("cut", [{}, {"tp": 2}], ids=str)
def test_every_way_of_recomputing_gives_the_same_gradients(cut):
    world = Parallel(**cut).world
    kept = ranks.run(gradients, world=world, cut=cut, recompute={})
    for recompute in (
        {"granularity": "selective"},
        {"granularity": "selective", "modules": ("mlp", "core_attn")},
        {"granularity": "full", "layers": 3},
        {"granularity": "full", "method": "block", "layers": 1},
    ):
        again = ranks.run(gradients, world=world, cut=cut, recompute=recompute)
        for rank in range(world):
            for name, gradient in kept[rank].items():
                np.testing.assert_allclose(again[rank][name], gradient, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_only_transformer_engine_can_forget_is_refused_without_it(monkeypatch):
    monkeypatch.setattr(recomputation, "find_spec", lambda _name: None)
    recomputation.check(Recompute(granularity="full", modules=("layernorm",)), (2,))
    with pytest.raises(SpecError, match="lists 'layernorm', which needs the package transformer_engine"):
        recomputation.check(Recompute(granularity="selective", modules=("mlp", "layernorm")), (2,))


def test_units_that_do_not_tile_a_chunk_are_refused():
    with pytest.raises(SpecError, match=r"recompute.layers is 2, which does not divide a chunk of 3 layers"):
        recomputation.check(Recompute(granularity="full", layers=2), (4, 3))


def test_nothing_is_recomputed_unless_asked():
    assert Recompute().granularity == "none"
