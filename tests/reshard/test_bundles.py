from dataclasses import replace

import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.bundles import bundles
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.reshard.megatron import megatron_layout

SHAPE = ModelShape(
    family="qwen2", layers=4, hidden=16, heads=8, kv_heads=2, head_dim=4, ffn=32, vocabulary=50, tied=True
)


def test_bundles_of_a_shard_add_up_to_what_it_holds():
    source, target = megatron_layout(SHAPE, Parallel(tp=4, pp=2)), vllm_layout(SHAPE, tp=2)
    made = bundles(source, target)
    for number, shard in enumerate(target.shards):
        assert sum(bundle.elements for bundle in made if bundle.shard == number) == shard.elements


def test_a_bundle_names_every_shard_that_holds_it():
    made = bundles(megatron_layout(SHAPE, Parallel(tp=2, pp=2)), huggingface_layout(SHAPE))
    # Shards 0 and 1 are the first stage's, 2 and 3 the last's, which keeps its own copy of the tied embedding.
    assert {bundle.holders for bundle in made} == {(0,), (1,), (0, 1), (2,), (3,), (2, 3), (0, 2), (1, 3)}


def test_every_holder_gives_the_same_elements():
    source, target = megatron_layout(SHAPE, Parallel(tp=2, pp=2)), huggingface_layout(SHAPE)
    tied = next(bundle for bundle in bundles(source, target) if bundle.holders == (1, 3))
    first, last = (list(tied.copies(sender=rank, receiver=0, holder=holder)) for holder, rank in enumerate((1, 3)))
    assert [copy.target for copy in first] == [copy.target for copy in last]
    assert first[0].source.key.name == "embedding.word_embeddings.weight"
    assert last[0].source.key.name == "output_layer.weight"


def test_layers_that_look_alike_share_their_tiles():
    made = bundles(huggingface_layout(SHAPE), vllm_layout(SHAPE, tp=2))
    layers = [part for part in made[0].parts if part.target.hf_prefix]
    assert len(layers) == SHAPE.layers
    assert len({id(part.tiling) for part in layers}) == 1


def test_layouts_of_different_models_have_no_plan():
    other = replace(SHAPE, layers=2)
    with pytest.raises(LayoutError, match="use one model"):
        bundles(huggingface_layout(SHAPE), vllm_layout(other, tp=1))
