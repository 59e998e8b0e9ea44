import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_model


def test_a_llama_has_neither_biases_nor_head_norms():
    architecture = describe(tiny_model("llama").config.to_dict())
    assert (architecture.qkv_bias, architecture.qk_norm) == (False, False)


def test_a_switch_the_family_file_does_not_compute_is_refused():
    with pytest.raises(SpecError, match="mlp_bias = True, but the actor computes only False"):
        describe({**tiny_model("llama").config.to_dict(), "mlp_bias": True})
