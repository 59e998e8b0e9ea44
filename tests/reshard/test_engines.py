import numpy as np
import pytest

from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Key, LayoutError, ModelShape, volume
from tests.reshard import by_hand
from tests.reshard.random_layouts import random_shape

MIXTURE = ModelShape(
    family="qwen3_moe",
    layers=2,
    hidden=16,
    heads=8,
    kv_heads=2,
    head_dim=4,
    ffn=32,
    vocabulary=130,
    tied=True,
    experts=4,
    expert_ffn=8,
    dense_layers=(0,),
)


def test_a_checkpoint_holds_every_tensor_whole():
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = random_shape(rng)
        held = {tensor.name: tensor.shape for tensor in huggingface_layout(shape).tensors(0)}
        assert held == {name: array.shape for name, array in by_hand.checkpoint(shape).items()}


def test_a_worker_stacks_experts_and_pads_the_vocabulary():
    held = {tensor.key: tensor for tensor in vllm_layout(MIXTURE, tp=2).tensors(1)}
    fused = held[Key(0, "model.layers.1.mlp.experts.routed_experts.w13_weight")]
    assert fused.shape == (4, 8, 16)
    assert fused.pieces[5] == (
        "model.layers.1.mlp.experts.2.up_proj.weight",
        ((4, 8), (0, 16)),
        ((2, 3), (4, 8), (0, 16)),
    )
    assert held[Key(0, "model.layers.1.mlp.experts.routed_experts.w2_weight")].shape == (4, 16, 4)
    embedding = held[Key(0, "model.embed_tokens.weight")]
    assert embedding.shape == (96, 16)
    assert volume(embedding.zeros[0]) == (192 - 130) * 16
    assert Key(0, "lm_head.weight") not in held
    assert Key(0, "model.layers.0.mlp.gate_up_proj.weight") in held


def test_replicas_are_groups_of_neighbouring_ranks():
    layout = vllm_layout(MIXTURE, tp=4, replicas=3)
    assert layout.ranks == (0, 1, 2, 3) * 3
    assert layout.group == 4


def test_a_tensor_parallel_size_that_cannot_be_is_refused():
    with pytest.raises(LayoutError, match="8 attention heads do not divide over 16"):
        vllm_layout(MIXTURE, tp=16)
