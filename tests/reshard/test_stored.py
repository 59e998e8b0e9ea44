from itertools import product
from math import prod

import numpy as np
import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import Key, ModelShape
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.stored import Chunk, chunks, objects

SIZES = {"layers": 4, "hidden": 12, "heads": 4, "kv_heads": 2, "head_dim": 3, "ffn": 8, "vocabulary": 21}


def every_chunk(shape: ModelShape, parallel: Parallel) -> list[Chunk]:
    layout = megatron_layout(shape, parallel, modules="transformer_engine")
    return [chunk for rank in range(parallel.world) for chunk in chunks(layout, rank, parallel.tp)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_the_chunks_of_any_cut_fill_the_same_tensors_once(family):
    experts = {"experts": 3, "expert_ffn": 8, "dense_layers": (1,)} if family == "qwen3_moe" else {}
    for tied, (tp, pp, vpp) in product((False, True), ((1, 1, 1), (2, 2, 1), (4, 2, 2), (1, 4, 1))):
        shape = ModelShape(family=family, tied=tied, **SIZES, **experts)
        whole = {chunk.name: chunk.shape for chunk in every_chunk(shape, Parallel())}
        counts = {name: np.zeros(size, int) for name, size in whole.items()}
        for chunk in every_chunk(shape, Parallel(tp=tp, pp=pp, vpp=vpp)):
            assert chunk.shape == whole[chunk.name]
            counts[chunk.name][slices(chunk.at)] += 1
        assert all((count == 1).all() for count in counts.values())
        assert ("output_layer.weight" in counts) is not tied


def test_gate_and_up_of_a_rank_are_stored_apart_and_a_layer_is_a_plane():
    layout = megatron_layout(ModelShape(family="llama", **SIZES), Parallel(tp=2, pp=2), modules="transformer_engine")
    found = [
        chunk for chunk in chunks(layout, 3, 2) if chunk.tensor == Key(0, "decoder.layers.1.mlp.linear_fc1.weight")
    ]
    name, size = "decoder.layers.mlp.linear_fc1.weight", (4, 16, 12)
    assert [chunk[:3] for chunk in found] == [
        (name, size, ((3, 4), (4, 8), (0, 12))),
        (name, size, ((3, 4), (12, 16), (0, 12))),
    ]
    assert [chunk.box for chunk in found] == [((0, 4), (0, 12)), ((4, 8), (0, 12))]


def test_padding_is_stored_and_nothing_else_is_added():
    shape = ModelShape(family="qwen3", **SIZES)
    stored = sum(prod(stop - start for start, stop in chunk.at) for chunk in every_chunk(shape, Parallel()))
    layout = megatron_layout(shape, Parallel())
    assert stored == layout.shards[0].elements + 2 * (32 - 21) * 12


def test_every_linear_layer_has_an_object():
    named = objects(ModelShape(family="llama", **SIZES))
    assert len(named) == 16
    assert "decoder.layers.mlp.linear_fc2._extra_state/shard_3_4" in named


def test_experts_are_stacked_in_a_layer_of_their_own_and_have_states_of_their_own():
    shape = ModelShape(family="qwen3_moe", experts=3, expert_ffn=8, dense_layers=(1,), **SIZES)
    found = {chunk.name: chunk.shape for chunk in every_chunk(shape, Parallel())}
    assert found["decoder.layers.0.mlp.experts.experts.linear_fc1.weight"] == (3, 16, 12)
    assert found["decoder.layers.0.mlp.router.weight"] == (3, 12)
    assert found["decoder.layers.1.mlp.linear_fc1.weight"] == (16, 12)
    (last,) = [
        chunk
        for chunk in every_chunk(shape, Parallel(pp=2))
        if chunk.name == "decoder.layers.3.mlp.experts.experts.linear_fc2.weight" and chunk.at[0] == (2, 3)
    ]
    assert last.tensor == Key(0, "decoder.layers.1.mlp.experts.linear_fc2.weight2")
    named = objects(shape)
    assert "decoder.layers.2.mlp.experts.experts.linear_fc1._extra_state/shard_2_3" in named
    assert "decoder.layers.1.mlp.linear_fc2._extra_state/shard_0_1" in named
    assert len(named) == len(set(named)) == 4 * 2 + 2 + 3 * 2 * 3
