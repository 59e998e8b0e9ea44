import torch
from torch.testing import assert_close

from megatron_rl.ops import segments

GROUP = torch.tensor([1, 0, 1, 2, 1])
X = torch.tensor([1.0, 5.0, 2.0, 7.0, 6.0], dtype=torch.float64)
OFFSETS = torch.tensor([0, 2, 2, 5])


def test_rows_of_any_order_add_up_by_group():
    assert_close(segments.group_sum(X, GROUP), torch.tensor([5.0, 9.0, 7.0], dtype=torch.float64))


def test_extremes_of_groups_ignore_the_zero_they_start_from():
    assert segments.group_max(-X, GROUP).tolist() == [-5.0, -1.0, -7.0]
    assert segments.group_min(X, GROUP).tolist() == [5.0, 1.0, 7.0]


def test_moments_by_hand():
    size_G, mean_G, variance_G = segments.group_moments(X, GROUP)
    assert size_G.tolist() == [1, 3, 1]
    assert mean_G.tolist() == [5.0, 3.0, 7.0]
    assert variance_G.tolist() == [0.0, 7.0, 0.0]


def test_a_constant_group_has_exactly_no_variance_and_its_own_mean():
    for value in (0.1, 1e9 + 0.1, -1 / 3):
        x_B = torch.full((7,), value)
        _, mean_G, variance_G = segments.group_moments(x_B, torch.zeros(7, dtype=torch.int64))
        assert variance_G.item() == 0
        assert mean_G.item() == x_B[0].item()


def test_moments_do_not_lose_digits_to_an_offset():
    x_B = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64) + 1e12
    assert_close(
        segments.group_moments(x_B, torch.zeros(3, dtype=torch.int64)).variance_G.item(), 1 / 3, rtol=1e-9, atol=0
    )


def test_no_rows_have_no_groups():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert segments.group_count(nothing) == 0
    assert segments.group_moments(nothing.double(), nothing).mean_G.tolist() == []


def test_the_sum_of_others_survives_a_giant_among_them():
    assert segments.sum_of_others(torch.tensor([1e20, 1.0, 2.0], dtype=torch.float64))[0].item() == 3.0


def test_rows_and_positions():
    assert segments.row_ids(OFFSETS).tolist() == [0, 0, 2, 2, 2]
    assert segments.positions(OFFSETS).tolist() == [0, 1, 0, 1, 2]
    assert segments.row_sum(X, OFFSETS).tolist() == [6.0, 0.0, 15.0]


def test_live_offsets_count_what_the_mask_keeps():
    assert segments.live_offsets(torch.tensor([1, 0, 1, 1, 0]), OFFSETS).tolist() == [0, 1, 1, 3]


def test_heads_are_cut_and_joined_row_by_row():
    values_T, offsets = segments.head((torch.arange(5), OFFSETS), torch.tensor([1, 4, 2]))
    assert (values_T.tolist(), offsets.tolist()) == ([0, 2, 3], [0, 1, 1, 3])
    joined_T, joined = segments.join((values_T, offsets), (torch.tensor([7, 8, 9]), torch.tensor([0, 1, 2, 3])))
    assert (joined_T.tolist(), joined.tolist()) == ([0, 7, 8, 2, 3, 9], [0, 2, 3, 6])


def test_what_is_kept_is_put_back_where_it_was():
    x_T, mask_T = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1], dtype=torch.uint8)
    kept_N = segments.kept(x_T, mask_T)
    assert kept_N.tolist() == [1.0, 3.0]
    assert segments.put_back(kept_N, mask_T).tolist() == [1.0, 0.0, 3.0]
    assert segments.kept(x_T, torch.ones(3)) is x_T
    assert segments.live_offsets(mask_T, torch.tensor([0, 2, 3])).tolist() == [0, 1, 2]
