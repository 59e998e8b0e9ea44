import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.baselines import grpo
from megatron_rl.ops.smoothing import never_visited, previous_variance, scale, smooth, smoothed_advantage

GROUP = torch.tensor([0, 1, 0, 1, 1, 0])


def visits(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(len(GROUP), generator=generator, dtype=torch.float64) for _ in range(count)]


def visited(rewards, alpha, ddof=1):
    state = never_visited(2)
    for reward_B in rewards:
        state = smooth(state, reward_B, GROUP, alpha, ddof)
    return state


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.99])
def test_the_variance_is_that_of_the_weighted_mixture_of_all_groups(alpha):
    rewards = visits(0)
    weights = [(1 - alpha) ** (len(rewards) - 1)]
    weights += [alpha * (1 - alpha) ** (len(rewards) - 1 - t) for t in range(1, len(rewards))]
    state = visited(rewards, alpha, ddof=0)
    for group in (0, 1):
        rows = torch.eq(GROUP, group)
        weight_N = torch.cat([torch.full((3,), weight / 3, dtype=torch.float64) for weight in weights])
        value_N = torch.cat([reward_B[rows] for reward_B in rewards])
        mean = (weight_N * value_N).sum()
        assert_close(state.mean_G[group], mean)
        assert_close(state.variance_G[group], (weight_N * (value_N - mean).square()).sum())


def test_no_smoothing_is_grpo():
    rewards = visits(1)
    state = visited(rewards, 1.0)
    advantage_B = scale(smoothed_advantage(rewards[-1], GROUP, state), GROUP, state.variance_G, 1e-4)
    assert_close(advantage_B, grpo(rewards[-1], GROUP, eps=1e-4))


def test_equal_weights_keep_the_mean_of_all_visits():
    rewards = visits(2)
    means = torch.stack([reward_B[GROUP == 0].mean() for reward_B in rewards])
    assert_close(visited(rewards, "1/n").mean_G[0], means.mean())


def test_weight_zero_freezes_the_first_visit():
    rewards = visits(3)
    assert_close(visited(rewards, 0.0), visited(rewards[:1], 0.0)._replace(count_G=torch.tensor([6, 6])))


def test_a_constant_group_still_learns_from_its_history():
    state = smooth(never_visited(1), torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), 0.5)
    reward_B = torch.tensor([1.0, 1.0]).double()
    state = smooth(state, reward_B, torch.tensor([0, 0]), 0.5)
    assert (state.mean_G.item(), state.variance_G.item()) == (0.75, 0.3125)
    assert float(smoothed_advantage(reward_B, torch.tensor([0, 0]), state).min()) > 0


def test_rewards_that_never_varied_give_exactly_nothing():
    state = visited([torch.full((6,), 0.1, dtype=torch.float64)] * 5, 0.3)
    advantage_B = smoothed_advantage(torch.full((6,), 0.1, dtype=torch.float64), GROUP, state)
    assert state.variance_G.tolist() == [0.0, 0.0]
    assert advantage_B.tolist() == [0.0] * 6


def test_prompts_on_different_visits_share_a_batch():
    old = smooth(never_visited(1), torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), 0.5)
    mixed = never_visited(2)._replace(
        mean_G=torch.cat([old.mean_G, torch.tensor([float("nan")]).double()]),
        variance_G=torch.cat([old.variance_G, torch.tensor([float("nan")]).double()]),
        count_G=torch.tensor([1, 0]),
    )
    after = smooth(mixed, torch.tensor([1.0, 1.0, 3.0]).double(), torch.tensor([0, 0, 1]), 0.5)
    assert after.mean_G.tolist() == [0.75, 3.0]
    assert after.variance_G.tolist() == [0.3125, 0.0]


def test_the_previous_variance_is_the_first_visits_own():
    before = never_visited(1)
    first = smooth(before, torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]), 0.5)
    second = smooth(first, torch.tensor([1.0, 1.0]).double(), torch.tensor([0, 0]), 0.5)
    assert previous_variance(before, first).item() == 0.5
    assert previous_variance(first, second).item() == 0.5
