import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.importance import Truncation, importance_weights, mismatch

OFFSETS = torch.tensor([0, 2, 4])
MASK = torch.tensor([1, 1, 1, 0])
TRAINER = torch.tensor([-1.0, -1.0, -1.0, float("nan")], dtype=torch.float64)
SAMPLER = torch.tensor([-1.5, -3.0, -0.5, float("-inf")], dtype=torch.float64)


def weights(truncation, reused_T=None):
    return importance_weights(mismatch(TRAINER, SAMPLER, MASK, reused_T), MASK, OFFSETS, truncation)


def exps(*exponents):
    return torch.tensor(exponents, dtype=torch.float64).exp()


def test_a_token_weight_is_capped_and_garbage_under_the_mask_ignored():
    assert_close(
        weights(Truncation("token", 2.0)), torch.cat([exps(0.5), torch.tensor([2.0]), exps(-0.5), torch.zeros(1)])
    )


def test_a_sequence_weight_is_the_product_on_every_live_token():
    assert_close(weights(Truncation("sequence", 50.0)), torch.cat([exps(2.5, 2.5, -0.5), torch.zeros(1).double()]))
    assert weights(Truncation("sequence", 2.0)).tolist()[:2] == [2.0, 2.0]


def test_icepop_drops_what_leaves_the_band():
    assert_close(weights(Truncation("icepop", 5.0, 0.7)), torch.cat([exps(0.5), torch.zeros(3).double()]))


@pytest.mark.parametrize("level", ["token", "icepop"])
def test_a_reused_token_weighs_one(level):
    assert weights(Truncation(level, 2.0, 0.5), torch.tensor([0, 1, 0, 0])).tolist()[1] == 1.0


def test_a_reused_token_leaves_the_sequence_weight_alone():
    assert_close(weights(Truncation("sequence", 5.0), torch.tensor([0, 1, 0, 0]))[:2], exps(0.5, 0.5))


def test_equal_numerics_weigh_one_and_carry_no_gradient():
    logprob_T = TRAINER[:2].clone().requires_grad_()
    gap_T = mismatch(logprob_T, logprob_T.detach(), torch.ones(2))
    weight_T = importance_weights(gap_T, torch.ones(2), torch.tensor([0, 2]), Truncation())
    assert weight_T.tolist() == [1.0, 1.0]
    assert not weight_T.requires_grad


def test_a_token_the_sampler_could_not_draw_meets_the_cap():
    gap_T = mismatch(torch.tensor([-1.0]), torch.tensor([float("-inf")]), torch.ones(1))
    assert importance_weights(gap_T, torch.ones(1), torch.tensor([0, 1]), Truncation()).tolist() == [2.0]


def test_an_unknown_level_lists_the_known_ones():
    with pytest.raises(ValueError, match="token, sequence, icepop"):
        weights(Truncation("row"))
