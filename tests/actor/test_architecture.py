import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import TINY


def test_a_family_is_its_file_and_an_unknown_one_hears_the_nearest():
    with pytest.raises(
        SpecError, match="'qwen33', but the known families are llama, qwen2, qwen3, qwen3_moe; did you mean 'qwen3'"
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
