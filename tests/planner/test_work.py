import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.planner.memory import elements
from megatron_rl.planner.work import forward, matrix_elements
from tests.planner.configs import LLAMA_8B, QWEN3_8B, QWEN3_30B_A3B


def test_a_dense_model_multiplies_all_but_its_embedding_and_norms():
    architecture = describe(LLAMA_8B)
    shape = architecture.shape
    norms = shape.hidden * (2 * shape.layers + 1)
    assert matrix_elements(architecture) == elements(shape) - shape.vocabulary * shape.hidden - norms


def test_a_mixture_multiplies_the_chosen_experts_alone():
    assert matrix_elements(describe(QWEN3_30B_A3B)) == pytest.approx(3.0e9, rel=0.02)


def test_attention_adds_two_products_over_half_of_all_pairs():
    architecture = describe(QWEN3_8B)
    alone, long = (forward(architecture, 1000, squares) for squares in (0, 1000**2))
    # Two products of 1000 x 1000 / 2 pairs x 128 numbers x 32 heads x 36 layers, an addition for each multiplication.
    assert long - alone == 2 * 2 * (1000 * 1000 / 2) * 128 * 32 * 36
