import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.lora import PROJECTIONS, LoraSettings, check
from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_model


def architecture(family: str):
    return describe(tiny_model(family).config.to_dict())


def test_every_matrix_of_a_layer_is_a_target_unless_said_otherwise():
    chosen = LoraSettings(rank=4, alpha=8.0)
    assert chosen.targets == PROJECTIONS
    assert chosen.scale == 2.0
    check(chosen, architecture("qwen3"), Parallel())
    check(None, architecture("qwen3_moe"), Parallel())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rank": 0}, "rank and alpha above 0, got 0"),
        ({"alpha": -1.0}, r"got 4 and -1\.0"),
        ({"targets": ()}, "should name projections"),
        ({"targets": ("q_proj", "q_proj")}, "each once"),
    ],
)
def test_what_makes_no_change_is_refused(wrong, said):
    with pytest.raises(SpecError, match=said):
        LoraSettings(**{"rank": 4, "alpha": 8.0, **wrong})


def test_experts_are_refused_and_attention_beside_them_is_not():
    with pytest.raises(SpecError, match=r"'gate_proj', but qwen3_moe has experts there.*\[q_proj, k_proj"):
        check(LoraSettings(rank=4, alpha=8.0), architecture("qwen3_moe"), Parallel())
    check(LoraSettings(rank=4, alpha=8.0, targets=("q_proj", "o_proj")), architecture("qwen3_moe"), Parallel())


def test_a_stage_without_layers_is_refused():
    with pytest.raises(LayoutError, match="a stage without layers"):
        check(LoraSettings(rank=4, alpha=8.0), architecture("qwen3"), Parallel(pp=2, stage_layers=(2, 0)))
