import pickle

import pytest

from megatron_rl.reshard.layout import Block, Key, LayoutError, LocalTensor, ModelShape, Piece, share, volume, whole

CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 6,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "vocab_size": 300,
}


def test_a_config_gives_the_sizes_of_every_tensor():
    shape = ModelShape.of({**CONFIG, "head_dim": 16, "dtype": "float32"})
    assert shape.item_bytes == 4
    assert shape.hf_shape("model.layers.3.self_attn.q_proj.weight") == (128, 64)
    assert shape.hf_shape("self_attn.k_proj.bias") == (32,)
    assert shape.hf_shape("self_attn.o_proj.weight") == (64, 128)
    assert shape.hf_shape("self_attn.q_norm.weight") == (16,)
    assert shape.hf_shape("mlp.down_proj.weight") == (64, 96)
    assert shape.hf_shape("mlp.experts.3.down_proj.weight") == (64, 32)
    assert shape.hf_shape("mlp.gate.weight") == (4, 64)
    assert shape.hf_shape("lm_head.weight") == (300, 64)
    assert shape.hf_shape("model.norm.weight") == (64,)


def test_what_a_config_leaves_out_is_what_its_family_means():
    shape = ModelShape.of({key: value for key, value in CONFIG.items() if key != "num_key_value_heads"})
    assert (shape.kv_heads, shape.head_dim, shape.tied, shape.item_bytes) == (8, 8, False, 2)


def test_layers_without_experts_are_those_listed_and_those_between_the_steps():
    shape = ModelShape.of({**CONFIG, "decoder_sparse_step": 2, "mlp_only_layers": [1]})
    assert [layer for layer in range(6) if shape.is_sparse(layer)] == [3, 5]


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(LayoutError, match="model_type 'mamba', but the families with a table are llama, qwen2, qwen3"):
        ModelShape.of({**CONFIG, "model_type": "mamba"})


def test_tensors_that_no_table_has_are_refused():
    with pytest.raises(LayoutError, match="sets attention_bias"):
        ModelShape.of({**CONFIG, "attention_bias": True})


def test_a_config_without_a_size_says_which():
    with pytest.raises(LayoutError, match="needs vocab_size as a positive whole number, but has None"):
        ModelShape.of({**CONFIG, "vocab_size": None})
    with pytest.raises(LayoutError, match="needs tie_word_embeddings as true or false, but has 'false'"):
        ModelShape.of({**CONFIG, "tie_word_embeddings": "false"})


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_experts"])
def test_a_size_beyond_any_model_is_refused_before_it_is_counted(key):
    with pytest.raises(LayoutError, match=f"a {key} beyond that of any model"):
        ModelShape.of({**CONFIG, key: 10**400})


def test_a_family_that_is_no_word_is_refused():
    with pytest.raises(LayoutError, match="families with a table"):
        ModelShape.of({**CONFIG, "model_type": ["qwen3"]})


def test_layout_errors_cross_processes():
    error = pickle.loads(pickle.dumps(LayoutError("choose another tp.")))
    assert isinstance(error, LayoutError)
    assert str(error) == "choose another tp."


def test_a_block_gives_its_template_full_names():
    tensor = LocalTensor("norm.weight", (4,), (Piece("layernorm.weight", ((0, 4),), ((0, 4),)),))
    block = Block(template=(tensor,), hf_prefix="model.layers.7.", local_prefix="decoder.layers.1.", chunk=2)
    (named,) = block.tensors()
    assert named.key == Key(2, "decoder.layers.1.norm.weight")
    assert named.pieces[0].name == "model.layers.7.layernorm.weight"


def test_shares_are_equal_or_refused():
    assert [share(12, rank, 3, "heads") for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]
    with pytest.raises(
        LayoutError, match="12 heads do not divide over 5 tensor-parallel ranks; choose a divisor of 12"
    ):
        share(12, 0, 5, "heads")


def test_boxes_have_volumes():
    assert volume(((2, 5), (0, 4))) == 12
    assert volume(whole((3, 7))) == 21
