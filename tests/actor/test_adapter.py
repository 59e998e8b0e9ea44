"""One change beside one fused matrix, by hand."""

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_rl.actor.adapter import Adapter, Merged
from megatron_rl.actor.lora import LoraSettings
from megatron_rl.reshard.layout import LocalTensor, Piece
from megatron_rl.reshard.names import Cut

FUSED = LocalTensor(
    name="mlp.linear_fc1.weight",
    shape=(4, 3),
    pieces=(
        Piece("mlp.gate_proj.weight", ((0, 2), (0, 3)), ((0, 2), (0, 3))),
        Piece("mlp.up_proj.weight", ((0, 2), (0, 3)), ((2, 4), (0, 3))),
    ),
)
GATE_A, UP_A = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 0.0]])
GATE_B, UP_B = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [-1.0]])
CHANGE = 2.0 * torch.cat([GATE_B @ GATE_A, UP_B @ UP_A])


@pytest.fixture
def adapter() -> Adapter:
    config = TransformerConfig(num_layers=1, hidden_size=3, num_attention_heads=1, use_cpu_initialization=True)
    made = Adapter(FUSED, Cut.GATE_UP, LoraSettings(rank=1, alpha=2.0), config)
    made.A.data.copy_(torch.cat([GATE_A, UP_A]))
    made.B.data.copy_(torch.cat([GATE_B, UP_B]))
    return made


def test_each_row_is_changed_by_the_projection_it_belongs_to(adapter):
    assert adapter.projections == ("mlp.gate_proj", "mlp.up_proj")
    torch.testing.assert_close(adapter.change((slice(None), slice(None))), CHANGE)


def test_rows_of_projections_that_are_no_targets_stay_as_they_are():
    config = TransformerConfig(num_layers=1, hidden_size=3, num_attention_heads=1, use_cpu_initialization=True)
    adapter = Adapter(FUSED, Cut.GATE_UP, LoraSettings(rank=1, alpha=1.0, targets=("up_proj",)), config)
    torch.nn.init.ones_(adapter.A)
    torch.nn.init.ones_(adapter.B)
    expected = torch.tensor([[0.0] * 3, [0.0] * 3, [1.0] * 3, [1.0] * 3])
    torch.testing.assert_close(adapter.change((slice(None), slice(None))), expected)
    assert [factor.projection for factor in adapter.factors] == ["mlp.up_proj"] * 2


def test_any_box_of_the_merged_matrix_is_that_box_of_the_sum_in_the_type_of_the_weight(adapter):
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for box in ((slice(0, 4), slice(0, 3)), (slice(1, 3), slice(2, 3))):
        torch.testing.assert_close(Merged(weight, adapter)[box], (weight + CHANGE)[box])
    half = weight.bfloat16()
    merged = Merged(half, adapter)[slice(0, 4), slice(0, 3)]
    assert torch.equal(merged, (half.float() + CHANGE).bfloat16())


def test_every_element_of_peft_s_factors_has_its_place_once(adapter):
    places = {(factor.projection, factor.letter): (factor.hf, factor.at) for factor in adapter.factors}
    assert places == {
        ("mlp.gate_proj", "A"): (((0, 1), (0, 3)), ((0, 1), (0, 3))),
        ("mlp.gate_proj", "B"): (((0, 2), (0, 1)), ((0, 2), (0, 1))),
        ("mlp.up_proj", "A"): (((0, 1), (0, 3)), ((1, 2), (0, 3))),
        ("mlp.up_proj", "B"): (((0, 2), (0, 1)), ((2, 4), (0, 1))),
    }
