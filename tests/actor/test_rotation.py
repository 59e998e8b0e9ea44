import torch

from megatron_rl.actor.rotation import rotated, turns

INVERSE_R = torch.tensor([1.0, 0.25])
POSITIONS_T = torch.tensor([0, 1, 2, 0, 1])


def test_a_pair_of_numbers_turns_by_its_position_times_its_frequency():
    heads_THD = torch.randn(5, 3, 4)
    plane_THR = torch.complex(heads_THD[..., :2], heads_THD[..., 2:])
    angle_T1R = (POSITIONS_T[:, None] * INVERSE_R)[:, None]
    expected_THR = plane_THR * torch.polar(torch.ones_like(angle_T1R), angle_T1R)
    turned_THD = rotated(heads_THD, turns(POSITIONS_T, INVERSE_R, torch.float32))
    torch.testing.assert_close(turned_THD, torch.cat((expected_THR.real, expected_THR.imag), -1))


def test_positions_that_start_again_turn_alike():
    heads_THD = torch.ones(5, 1, 4)
    turned_THD = rotated(heads_THD, turns(POSITIONS_T, INVERSE_R, torch.float32))
    torch.testing.assert_close(turned_THD[:2], turned_THD[3:], rtol=0, atol=0)


def test_the_gradient_is_the_gradient():
    heads_THD = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    by = turns(POSITIONS_T, INVERSE_R, torch.float64)
    assert torch.autograd.gradcheck(lambda heads: rotated(heads, by), heads_THD)


def test_angles_are_kept_in_the_type_of_what_they_turn():
    assert turns(POSITIONS_T, INVERSE_R, torch.bfloat16).cosine_T1D.dtype == torch.bfloat16
