import pytest

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.names import FAMILIES
from tests import ranks
from tests.reshard.models import expert_shapes, parameter_shapes

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
CUTS = (
    Parallel(tp=2, dp=2),
    Parallel(tp=4),
    Parallel(tp=2, pp=2),
    Parallel(tp=2, pp=2, vpp=3),
    Parallel(tp=2, pp=2, stage_layers=(2, 4)),
)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_layout_names_and_sizes_every_parameter_that_megatron_makes(family, tied):
    config = {**CONFIG, "model_type": family, "tie_word_embeddings": tied}
    for parallel in CUTS:
        layout = megatron_layout(ModelShape.of(config), parallel)
        made = ranks.run(parameter_shapes, world=4, config=config, parallel=parallel)
        for rank, shapes in enumerate(made):
            assert {tuple(tensor.key): tensor.shape for tensor in layout.tensors(rank)} == shapes, (parallel, rank)


@pytest.mark.parametrize(
    "cut", [{"tp": 2, "dp": 2}, {"tp": 2, "dp": 2, "ep": 2}, {"tp": 2, "dp": 2, "ep": 4}, {"dp": 4, "ep": 2}]
)
def test_the_layout_deals_experts_as_megatron_does(cut):
    parallel = Parallel(**cut)
    config = {
        **CONFIG,
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [0],
    }
    layout = megatron_layout(ModelShape.of(config), parallel)
    for rank, (expert_rank, shapes) in enumerate(ranks.run(expert_shapes, world=4, parallel=parallel)):
        tensors = {tuple(tensor.key): tensor for tensor in layout.tensors(rank)}
        assert {key: tensor.shape for key, tensor in tensors.items()} == shapes
        first = tensors[0, "decoder.layers.1.mlp.experts.local_experts.0.linear_fc2.weight"].pieces[0].name
        assert first == f"model.layers.1.mlp.experts.{expert_rank * 4 // parallel.ep}.down_proj.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_names_each_tensor_once(family):
    for rows in FAMILIES[family]:
        for names in (
            [row.local for row in rows],
            [row.transformer_engine for row in rows],
            [row.vllm for row in rows],
        ):
            assert len(set(names)) == len(names)
        hf = [name for row in rows for name in row.hf]
        assert len(set(hf)) == len(hf)
