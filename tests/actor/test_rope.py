import copy

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_rl.actor.architecture import CONSTANTS, describe
from megatron_rl.actor.rope import RULES, frequencies
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import TINY

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 6.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        LLAMA3,
        {**LLAMA3, "original_max_position_embeddings": 8192, "factor": 8.0},
        YARN,
        {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
        {**YARN, "attention_factor": 1.3},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
    ],
)
def test_every_rule_gives_the_frequencies_and_magnitude_of_transformers(scaling):
    config = LlamaConfig(**{**TINY, "head_dim": 64, "rope_parameters": {"rope_theta": 5e5, **scaling}})
    expected_R, expected_magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    inverse_R, magnitude = frequencies(describe(config.to_dict()))
    torch.testing.assert_close(inverse_R, expected_R, rtol=1e-6, atol=0)
    assert magnitude == pytest.approx(expected_magnitude)


def test_the_older_spelling_of_scaling_is_read_too():
    modern = {**TINY, "model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    older = {**TINY, "model_type": "llama", "rope_theta": 5e5, "rope_parameters": None, "rope_scaling": LLAMA3}
    torch.testing.assert_close(frequencies(describe(older)).inverse_R, frequencies(describe(modern)).inverse_R)


OLD = {key: value for key, value in TINY.items() if key != "rope_parameters"} | {"rope_theta": 1e6}


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": YARN, "original_max_position_embeddings": 16},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0, "mscale": 0.7, "truncate": None}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "rope_scaling": {**YARN, "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    ],
)
def test_a_published_file_is_read_as_transformers_reads_it(written):
    reference = LlamaRotaryEmbedding(LlamaConfig(**copy.deepcopy({**OLD, **written})))
    inverse_R, magnitude = frequencies(describe({**OLD, "model_type": "llama", **written}))
    torch.testing.assert_close(inverse_R, reference.inv_freq, rtol=1e-6, atol=0)
    assert magnitude == pytest.approx(reference.attention_scaling)


def test_every_rule_whose_constants_are_checked_is_computed():
    assert RULES.keys() == CONSTANTS.keys()


def test_an_unknown_rule_is_refused_by_name():
    config = {**TINY, "model_type": "llama", "rope_parameters": {"rope_type": "longrope", "factor": 2.0}}
    with pytest.raises(SpecError, match="RoPE scaling 'longrope', but the actor knows default, linear, llama3, yarn"):
        frequencies(describe(config))


def test_a_rule_without_its_constant_is_refused_by_the_constant():
    config = {**TINY, "model_type": "llama", "rope_parameters": {"rope_type": "linear"}}
    with pytest.raises(SpecError, match="factor as a positive number, but has None"):
        frequencies(describe(config))
