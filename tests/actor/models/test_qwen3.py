import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_model


def test_heads_are_normalised_and_sized_on_their_own():
    architecture = describe(tiny_model("qwen3").config.to_dict())
    assert (architecture.qkv_bias, architecture.qk_norm, architecture.shape.head_dim) == (False, True, 32)


def test_a_switch_the_family_file_does_not_compute_is_refused():
    with pytest.raises(SpecError, match="attention_bias = True, but the actor computes only False"):
        describe({**tiny_model("qwen3").config.to_dict(), "attention_bias": True})
