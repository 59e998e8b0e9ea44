import torch

from megatron_rl.reshard.layout import Key, ModelShape
from megatron_rl.rollout.fused_weights import FusedWeights
from tests.fakes.tiny_models import tiny_model

SHAPE = ModelShape.of(tiny_model("qwen2").config.to_dict())


def test_parameters_are_views_of_fused_storage_in_the_order_the_decoder_reads():
    fused = FusedWeights.empty(SHAPE, torch.float32, torch.device("cpu"))
    for number, kind in enumerate(("q", "k", "v")):
        fused.parameters[Key(0, f"model.layers.1.self_attn.{kind}_proj.weight")].fill_(number + 1)
    stored = fused.storage["model.layers.1.self_attn.qkv_proj.weight"]
    assert stored[:, 0].tolist() == [1.0] * 64 + [2.0] * 32 + [3.0] * 32
    assert fused.storage["model.layers.1.self_attn.qkv_proj.bias"].shape == (128,)


def test_each_expert_has_gate_and_up_in_one_matrix_and_the_router_its_own():
    shape = ModelShape.of(tiny_model("qwen3_moe").config.to_dict())
    fused = FusedWeights.empty(shape, torch.float32, torch.device("cpu"))
    fused.parameters[Key(0, "model.layers.2.mlp.experts.3.up_proj.weight")].fill_(1)
    assert fused.storage["model.layers.2.mlp.experts.3.gate_up_proj.weight"][:, 0].tolist() == [0.0] * 32 + [1.0] * 32
    assert fused.storage["model.layers.2.mlp.experts.2.gate_up_proj.weight"].count_nonzero() == 0
    assert fused.storage["model.layers.2.mlp.gate.weight"].shape == (4, 64)
    assert fused.storage["model.layers.1.mlp.gate_up_proj.weight"].shape == (192, 64)


def test_every_tensor_of_the_checkpoint_has_its_view():
    fused = FusedWeights.empty(SHAPE, torch.float32, torch.device("cpu"))
    expected = {name: tuple(tensor.shape) for name, tensor in tiny_model("qwen2").state_dict().items()}
    assert {key.name: tuple(view.shape) for key, view in fused.parameters.items()} == expected
