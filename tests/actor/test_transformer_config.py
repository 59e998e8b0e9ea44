import pytest
import torch

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recompute import Recompute
from megatron_rl.actor.transformer_config import transformer_config
from tests.fakes.tiny_models import tiny_model

FP32 = Precision(compute="fp32")


def configured(parallel=None, precision=FP32, recompute=None, **changes):
    architecture = describe(tiny_model("qwen3", **changes).config.to_dict())
    return transformer_config(architecture, parallel or Parallel(), precision, recompute or Recompute())


@pytest.mark.parametrize(
    ("recipe", "fmt", "history"),
    [("tensorwise", "hybrid", 1), ("delayed", "hybrid", 1024), ("blockwise", "e4m3", 1), ("mxfp8", "e4m3", 1)],
)
def test_each_recipe_becomes_megatrons_fields_over_bf16(recipe, fmt, history):
    config = configured(precision=Precision(compute="fp8", recipe=recipe))
    assert (config.fp8, config.fp8_recipe, config.fp8_amax_history_len) == (fmt, recipe, history)
    assert config.bf16
    assert config.params_dtype == torch.bfloat16


def test_edge_layers_stay_in_bf16_when_asked():
    config = configured(precision=Precision(compute="fp8", recipe="tensorwise", edge_layers_bf16=1))
    assert (config.first_last_layers_bf16, config.num_layers_at_end_in_bf16) == (True, 1)


def test_fp32_is_fp32_throughout():
    config = configured()
    assert (config.bf16, config.fp8, config.params_dtype) == (False, None, torch.float32)


def test_uneven_stages_become_megatrons_list():
    config = configured(Parallel(pp=2, stage_layers=(3, 1)), num_hidden_layers=4)
    stages = config.pipeline_model_parallel_layout.layout
    assert [[layer.name for layer in stage[0]] for stage in stages] == [
        ["embedding", "decoder", "decoder", "decoder"],
        ["decoder", "loss"],
    ]


def test_recomputation_is_off_unless_asked_and_then_as_asked():
    assert configured().recompute_granularity is None
    full = configured(recompute=Recompute(granularity="full", method="block", layers=2))
    assert (full.recompute_granularity, full.recompute_method, full.recompute_num_layers) == ("full", "block", 2)
    some = configured(recompute=Recompute(granularity="selective", modules=("mlp", "core_attn")))
    assert some.recompute_modules == ["mlp", "core_attn"]


def test_yarn_scales_the_scores_by_the_square_of_its_magnitude():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.5}
    config = configured(rope_parameters={**rope, "original_max_position_embeddings": 32})
    assert config.softmax_scale == pytest.approx(2.25 * 32**-0.5)
