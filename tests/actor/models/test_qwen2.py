import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_model


def test_query_key_and_value_have_biases_and_no_norms():
    architecture = describe(tiny_model("qwen2").config.to_dict())
    assert (architecture.qkv_bias, architecture.qk_norm) == (True, False)


def test_a_switch_the_family_file_does_not_compute_is_refused():
    with pytest.raises(SpecError, match="use_sliding_window = True, but the actor computes only False"):
        describe({**tiny_model("qwen2").config.to_dict(), "use_sliding_window": True})
