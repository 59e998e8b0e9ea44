import math

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import EXPERTS, TINY


def test_a_family_is_its_file_and_an_unknown_one_hears_the_nearest():
    with pytest.raises(
        SpecError,
        match="'qwen33', but the known families are llama, qwen2, qwen3, qwen3_moe; the nearest is 'qwen3'\\.",
    ):
        describe({**TINY, "model_type": "qwen33"})


def test_the_head_size_is_the_hidden_size_over_the_heads_unless_written():
    assert describe({**TINY, "model_type": "llama"}).shape.head_dim == 16
    assert describe({**TINY, "model_type": "llama", "head_dim": 24}).shape.head_dim == 24


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match="hidden_size"):
        describe({**TINY, "model_type": "llama", "hidden_size": None})


def test_an_activation_that_is_not_computed_is_refused():
    with pytest.raises(SpecError, match="hidden_act = 'gelu', but the actor computes only 'silu'"):
        describe({**TINY, "model_type": "llama", "hidden_act": "gelu"})


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def refusal(**changes) -> str:
    with pytest.raises(SpecError) as caught:
        describe({**TINY, "model_type": "qwen3", **changes})
    (problem,) = caught.value.problems
    assert problem.startswith("config.json ")
    assert problem.endswith(".")
    return problem


@pytest.mark.parametrize("key", [*SIZES, "vocab_size", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "x", math.nan, [1]])
def test_a_size_that_no_model_has_is_refused(key, value):
    assert f"needs {key} as a positive whole number, but has {value!r}" in refusal(**{key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1.0, True, "x", math.nan, math.inf, 10**400])
def test_a_number_that_nothing_can_be_computed_with_is_refused(key, value):
    assert f"needs {key} as a positive number" in refusal(**{"rope_parameters": None, key: value})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads, which cannot share 3 key-value heads evenly"),
        ({"num_key_value_heads": 8}, "4 attention heads, which cannot share 8 key-value heads evenly"),
        ({"head_dim": 15}, "a head_dim of 15, but RoPE turns pairs"),
        ({"head_dim": None, "hidden_size": 66}, "no head_dim, and hidden_size 66 does not divide over 4 heads"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings as true or false, but has 'false'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings as true or false, but has 1"),
        ({"hidden_act": ["silu"]}, "hidden_act = ['silu'], but the actor computes only 'silu'"),
        ({"use_sliding_window": [1]}, "use_sliding_window = [1], but the actor computes only False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "computes only 'full_attention'"),
        ({"layer_types": "sliding_attention"}, "computes only 'full_attention'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "computes only models without it"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5, but the actor computes only 1"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ],
)
def test_what_the_actor_does_not_compute_is_refused_and_not_overlooked(changes, said):
    assert said in refusal(**changes)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic', but the actor knows default, linear, llama3, yarn"),
        ({"rope_type": "longrope", "factor": 2.0}, "RoPE scaling 'longrope'"),
        ({"type": "mrope", "mrope_section": [1, 2, 3]}, "RoPE scaling 'mrope'"),
        ({"rope_type": ["yarn"], "factor": 4.0}, "RoPE scaling ['yarn']"),
        ({"full_attention": YARN}, "settings of 'full_attention' alone"),
        ({"rope_type": "yarn"}, "factor as a positive number, but has None"),
        ({**YARN, "factor": "4"}, "factor as a positive number, but has '4'"),
        ({**YARN, "factor": math.inf}, "factor as a positive number, but has inf"),
        ({**YARN, "attention_factor": 0.0}, "attention_factor as a positive number"),
        ({**YARN, "beta_fast": "x"}, "beta_fast as a positive number"),
        ({**YARN, "truncate": "no"}, "truncate = 'no', but the actor computes only True or False"),
        ({**YARN, "rope_theta": 1.0}, "the base of RoPE is above 1"),
        ({"rope_type": "linear", "factor": 0}, "factor as a positive number, but has 0"),
        ({"rope_type": "linear", "factor": math.nan}, "factor as a positive number, but has nan"),
        ({**LLAMA3, "low_freq_factor": None}, "low_freq_factor as a positive number"),
        ({**LLAMA3, "low_freq_factor": 4.0}, "RoPE's high one must be above the low one"),
    ],
)
def test_a_rope_rule_that_is_unknown_or_incomplete_is_refused_before_anything_is_computed(written, said):
    assert said in refusal(rope_parameters=written)


def test_a_mixture_is_refused_where_no_token_could_be_routed():
    mixture = {**TINY, **EXPERTS, "model_type": "qwen3_moe"}
    assert describe(mixture).routing.chosen == 2
    for changes, said in (
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but only 4 experts"),
        ({"num_experts": 0}, "num_experts as a positive whole number, but has 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step as a positive whole number, but has 0"),
        ({"norm_topk_prob": "no"}, "norm_topk_prob = 'no', but the actor computes only True or False"),
    ):
        with pytest.raises(SpecError, match=said):
            describe({**mixture, **changes})
