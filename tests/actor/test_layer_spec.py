import pytest
import torch

from megatron_rl.actor import groups
from megatron_rl.actor.attention import PackedAttention
from megatron_rl.actor.build import build
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from tests import ranks
from tests.fakes.tiny_models import tiny_model


def modules_of(family: str) -> dict[str, str]:
    groups.cut(Parallel())
    model = build(tiny_model(family).config.to_dict(), Parallel(), Precision(compute="fp32"))
    (layer, _) = model.chunks[0].decoder.layers
    assert isinstance(layer.self_attention.core_attention, PackedAttention)
    return {
        "norm": type(layer.input_layernorm).__name__,
        "query_norm": type(layer.self_attention.q_layernorm).__name__,
        "last_norm": type(model.chunks[0].decoder.final_layernorm).__name__,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the layers may be Transformer Engine's")
def test_layers_have_packed_attention_and_head_norms_only_where_the_family_does():
    assert ranks.run(modules_of, world=1, family="qwen3") == [
        {"norm": "RMSNorm", "query_norm": "RMSNorm", "last_norm": "RMSNorm"}
    ]
    assert ranks.run(modules_of, world=1, family="llama")[0]["query_norm"] == "IdentityOp"
