import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from megatron_rl.ops.priorities import draw, draw_weights, floored, pick, priorities, probabilities

ADVANTAGE = torch.tensor([1.5, 0.0, -0.5, -1.0, 0.0])
GROUP = torch.tensor([0, 1, 0, 0, 1])


@pytest.mark.parametrize(("scheme", "expected"), [("average", [1.0, 0.0]), ("max", [1.5, 0.0]), ("last", [1.0, 0.0])])
def test_priority_is_the_size_of_a_groups_advantages(scheme, expected):
    assert_close(priorities(ADVANTAGE, GROUP, scheme, eps=0.0), torch.tensor(expected))


def test_the_last_rollout_is_the_last_in_row_order():
    assert_close(priorities(ADVANTAGE.flip(0), GROUP.flip(0), "last", eps=0.0), torch.tensor([1.5, 0.0]))


def test_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(ValueError, match="'average', 'max' or 'last'"):
        priorities(ADVANTAGE, GROUP, "mean")


def test_probabilities_sum_to_one_and_exponent_zero_is_uniform():
    priority_D = torch.rand(50, dtype=torch.float64)
    assert_close(probabilities(priority_D, 0.6).sum().item(), 1.0)
    assert_close(probabilities(priority_D, 0.0), torch.full((50,), 0.02, dtype=torch.float64))


def test_equal_priorities_weigh_one():
    weights = draw_weights(probabilities(torch.full((5,), 3.0)), torch.tensor([0, 3]), 0.4)
    for weight_N in weights:
        assert_close(weight_N, torch.ones(2))


def test_full_correction_estimates_the_uniform_mean():
    probability_D = probabilities(torch.rand(20, dtype=torch.float64) + 0.01)
    value_D = torch.rand(20, dtype=torch.float64)
    weight_D = draw_weights(probability_D, torch.arange(20), beta=1.0).raw_N
    assert_close((probability_D * weight_D * value_D).sum(), value_D.mean())


def test_normalised_weights_never_exceed_one():
    probability_D = probabilities(torch.tensor([1e-6, 1.0, 4.0], dtype=torch.float64))
    weights = draw_weights(probability_D, torch.tensor([1, 2]), 0.4)
    assert weights.over_batch_N.max().item() == 1
    assert weights.over_all_N.max().item() < 1


def test_draws_are_distinct_and_follow_the_uniforms():
    probability_D = probabilities(torch.rand(30, dtype=torch.float64))
    uniform_D = torch.rand(30, dtype=torch.float64)
    drawn_N = draw(probability_D, uniform_D, 30)
    assert sorted(drawn_N.tolist()) == list(range(30))
    assert torch.equal(draw(probability_D, uniform_D, 4), drawn_N[:4])


def test_impossible_prompts_are_not_drawn():
    probability_D = torch.tensor([0.0, 0.5, 0.5])
    assert sorted(draw(probability_D, torch.zeros(3), 2).tolist()) == [1, 2]
    with pytest.raises(ValueError, match="only 2"):
        draw(probability_D, torch.rand(3), 3)


def first_two_draws(probability_D, times):
    uniform_ND = torch.rand(times, len(probability_D), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return torch.stack([draw(probability_D, uniform_D, 2) for uniform_D in uniform_ND])


@pytest.mark.parametrize("priority", [[1.0, 2.0, 3.0, 4.0], [8.0, 1.0, 0.5, 0.5]])
def test_draws_have_the_law_of_successive_renormalised_draws(priority):
    times, probability_D = 4000, probabilities(torch.tensor(priority, dtype=torch.float64), 1.0)
    expected = probability_D[:, None] * probability_D[None, :] / (1 - probability_D[:, None])
    off_diagonal = ~torch.eye(4, dtype=torch.bool)
    pairs = first_two_draws(probability_D, times)
    seen = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16).view(4, 4)[off_diagonal]
    assert stats.chisquare(seen.numpy(), (times * expected[off_diagonal]).numpy()).pvalue > 0.001


def test_a_changed_priority_changes_the_next_draw():
    before, after = (probabilities(torch.tensor(p).double(), 1.0) for p in ([1.0, 1.0, 1.0, 1.0], [9.0, 1.0, 1.0, 1.0]))
    share = [float((first_two_draws(p, 2000)[:, 0] == 0).double().mean()) for p in (before, after)]
    assert share == pytest.approx([0.25, 0.75], abs=0.03)


def test_a_dead_prompt_keeps_a_floor():
    assert_close(floored(torch.tensor([0.0, 1.0, 2.0]), 0.05), torch.tensor([0.05, 1.0, 2.0]))


def test_a_point_picks_the_first_prompt_that_reaches_it():
    probability_D = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    points = torch.tensor([0.0, 0.25, 0.26, 0.5, 0.51, 1.0], dtype=torch.float64)
    assert pick(probability_D, points).tolist() == [0, 0, 1, 1, 2, 2]
