import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import Key, LayoutError, ModelShape
from megatron_rl.reshard.megatron import megatron_layout, megatron_vocabulary

SHAPE = ModelShape(
    family="qwen2", layers=8, hidden=16, heads=8, kv_heads=2, head_dim=4, ffn=32, vocabulary=50, tied=True
)
MIXTURE = ModelShape(
    family="qwen3_moe",
    layers=2,
    hidden=16,
    heads=8,
    kv_heads=2,
    head_dim=4,
    ffn=32,
    vocabulary=50,
    experts=4,
    expert_ffn=8,
)


def held(layout, rank):
    return {tensor.key: tensor for tensor in layout.tensors(rank)}


def hf_layers(layout, rank, chunk):
    """Hugging Face layers in the order of the chunk's own numbers."""
    names = [f"decoder.layers.{local}.self_attention.linear_proj.weight" for local in range(8)]
    tensors = held(layout, rank)
    return [
        int(tensors[Key(chunk, name)].pieces[0].name.split(".")[2]) for name in names if Key(chunk, name) in tensors
    ]


def test_interleaved_stages_hold_every_so_many_layers():
    layout = megatron_layout(SHAPE, Parallel(pp=2, vpp=2))
    assert [[hf_layers(layout, rank, chunk) for chunk in range(2)] for rank in range(2)] == [
        [[0, 1], [4, 5]],
        [[2, 3], [6, 7]],
    ]


def test_uneven_stages_hold_what_is_listed():
    layout = megatron_layout(SHAPE, Parallel(pp=3, stage_layers=(1, 5, 2)))
    assert [hf_layers(layout, rank, 0) for rank in range(3)] == [[0], [1, 2, 3, 4, 5], [6, 7]]


def test_a_tied_head_is_a_tensor_of_its_own_only_on_another_stage():
    output = "output_layer.weight"
    alone = megatron_layout(SHAPE, Parallel())
    assert output not in {key.name for key in held(alone, 0)}
    first, last = (held(megatron_layout(SHAPE, Parallel(pp=2, vpp=2)), rank) for rank in range(2))
    assert output not in {key.name for key in first}
    assert last[Key(1, output)].pieces[0].name == "model.embed_tokens.weight"
    assert first[Key(0, "embedding.word_embeddings.weight")].shape == last[Key(1, output)].shape


def test_a_critic_has_no_output_layer():
    layout = megatron_layout(SHAPE, Parallel(pp=2), head=False)
    assert all("output_layer" not in key.name for rank in range(2) for key in held(layout, rank))


def test_replicas_name_the_shard_of_their_tensor_and_pipeline_rank():
    assert megatron_layout(SHAPE, Parallel(tp=2, dp=2, pp=2)).ranks == (0, 1, 0, 1, 2, 3, 2, 3)


def test_transformer_engine_fuses_norms_into_what_follows_them():
    names = {key.name for key in held(megatron_layout(SHAPE, Parallel(), modules="transformer_engine"), 0)}
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in names
    assert "decoder.layers.0.input_layernorm.weight" not in names


def test_experts_that_are_dealt_are_whole_and_numbered_by_their_rank():
    layout = megatron_layout(MIXTURE, Parallel(tp=2, dp=2, ep=2))
    tensors = [held(layout, rank) for rank in range(4)]
    name = Key(0, "decoder.layers.1.mlp.experts.local_experts.1.linear_fc2.weight")
    assert [own[name].pieces[0].name for own in tensors] == [
        f"model.layers.1.mlp.experts.{expert}.down_proj.weight" for expert in (1, 3, 1, 3)
    ]
    assert tensors[0][name].shape == (16, 8)


def test_experts_that_are_not_dealt_are_cut_like_everything_else():
    layout = megatron_layout(MIXTURE, Parallel(tp=2))
    name = Key(0, "decoder.layers.0.mlp.experts.local_experts.3.linear_fc2.weight")
    assert held(layout, 1)[name].shape == (16, 4)


def test_the_vocabulary_is_padded_until_it_divides():
    assert [megatron_vocabulary(50, tp) for tp in (1, 2, 8, 3)] == [64, 64, 64, 96]


@pytest.mark.parametrize(
    ("shape", "parallel", "reason"),
    [
        (SHAPE, Parallel(dp=2, ep=2), "0 experts do not divide over ep 2"),
        (MIXTURE, Parallel(dp=3, ep=3), "4 experts do not divide over ep 3"),
        (SHAPE, Parallel(tp=3), "neither a multiple nor a divisor of tp 3"),
        (SHAPE, Parallel(tp=16), "8 attention heads do not divide over 16"),
        (SHAPE, Parallel(pp=3), "8 layers do not divide"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(shape, parallel, reason):
    with pytest.raises(LayoutError, match=reason):
        megatron_layout(shape, parallel)


def test_padding_below_the_vocabulary_is_refused():
    with pytest.raises(LayoutError, match="padded vocabulary of 48 is smaller than the model's 50"):
        megatron_layout(SHAPE, Parallel(), vocabulary=48)
