from itertools import product
from math import prod

import numpy as np
import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import Key, LayoutError, ModelShape
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.stored import Chunk, chunks, objects

SIZES = {"layers": 4, "hidden": 12, "heads": 4, "kv_heads": 2, "head_dim": 3, "ffn": 8, "vocabulary": 21}


def every_chunk(shape: ModelShape, parallel: Parallel) -> list[Chunk]:
    layout = megatron_layout(shape, parallel, modules="transformer_engine")
    return [chunk for rank in range(parallel.world) for chunk in chunks(layout, rank, parallel.tp)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_chunks_of_any_cut_fill_the_same_tensors_once(family):
    for tied, (tp, pp, vpp) in product((False, True), ((1, 1, 1), (2, 2, 1), (4, 2, 2), (1, 4, 1))):
        shape = ModelShape(family=family, tied=tied, **SIZES)
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


def test_experts_are_refused():
    shape = ModelShape(family="qwen3_moe", experts=4, expert_ffn=8, **SIZES)
    with pytest.raises(LayoutError, match="qwen3_moe has experts, which checkpoints are not converted with"):
        every_chunk(shape, Parallel())
