"""Soft-optimal values and their claims, and the sums over tokens that advantages are made of."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops import values
from megatron_rl.ops.values import (
    Tokens,
    discounted_sum,
    gae,
    optimal_policy,
    optimal_value,
    optimal_value_of_rate,
    outcome_gae,
    reward_to_go,
    whiten,
)

REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
LADDER = (0.0, 1e-4, 0.1, 0.5, 1.0, 10.0, 1e9, math.inf)


def value(rewards, beta):
    reward_B = torch.as_tensor(rewards, dtype=torch.float64)
    return optimal_value(reward_B, torch.zeros(len(reward_B), dtype=torch.int64), beta).item()


@pytest.mark.parametrize("seed", range(10))
def test_the_value_falls_from_the_maximum_to_the_mean_as_beta_grows(seed):
    rewards = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rungs = [value(rewards, beta) for beta in LADDER]
    assert rungs[0] == float(rewards.max())
    assert rungs[-1] == pytest.approx(float(rewards.mean()))
    assert all(more >= less - 1e-12 for more, less in pairwise(rungs))


@pytest.mark.parametrize("beta", [1e-4, 0.5, 30.0])
def test_an_offset_moves_the_value_and_order_does_not(beta):
    rewards = [0.3, -1.0, 2.0, 0.1]
    assert value([reward + 7 for reward in rewards], beta) == pytest.approx(value(rewards, beta) + 7)
    assert value(rewards[::-1], beta) == pytest.approx(value(rewards, beta))


@pytest.mark.parametrize("beta", [1e-4, 0.5])
def test_giant_rewards_overflow_nothing(beta):
    assert value([900.0, -900.0], beta) == pytest.approx(900 - beta * math.log(2))
    assert value([-900.0, -900.0], beta) == -900.0


def test_groups_of_unequal_size_have_each_their_value():
    reward_B, group_B = torch.tensor([1.0, 0.0, 0.0, 1.0]).double(), torch.tensor([0, 1, 0, 2])
    assert_close(optimal_value(reward_B, group_B, 0.5), torch.tensor([value([1, 0], 0.5), 0.0, 1.0]).double())


@pytest.mark.parametrize("beta", LADDER)
def test_a_pass_rate_has_the_value_of_its_samples(beta):
    for solved in range(9):
        rate = torch.tensor(solved / 8, dtype=torch.float64)
        expected = value([1.0] * solved + [0.0] * (8 - solved), beta)
        assert optimal_value_of_rate(rate, beta).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("p", "sampled", "exact"), [(0.05, 0.110, 0.139), (0.125, 0.251, 0.294), (0.5, 0.696, 0.717)])
def test_eight_samples_underestimate_the_value(p, sampled, exact):
    solved = torch.arange(9, dtype=torch.float64)
    odds = torch.distributions.Binomial(8, torch.tensor(p, dtype=torch.float64)).log_prob(solved).exp()
    assert (odds * optimal_value_of_rate(solved / 8, 0.5)).sum().item() == pytest.approx(sampled, abs=6e-4)
    assert optimal_value_of_rate(torch.tensor(p).double(), 0.5).item() == pytest.approx(exact, abs=6e-4)


def test_the_optimal_policy_reaches_the_optimal_value():
    best = optimal_policy(REFERENCE, REWARD, 0.5)
    assert_close(best.policy_V, torch.tensor([0.814098, 0.066106, 0.119796], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(0.5 * (best.policy_V / REFERENCE).log(), best.advantage_V)
    assert_close(best.objective, best.value)


def test_answers_the_reference_never_gives_stay_impossible():
    best = optimal_policy(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1e6]).double(), 1e-3)
    assert best.policy_V.tolist() == [1.0, 0.0]
    assert best.objective.item() == 0.0


def test_a_discounted_sum_restarts_in_every_row():
    x_T, offsets = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([0, 3, 3, 5])
    assert discounted_sum(x_T, offsets, 0.5).tolist() == [2.75, 3.5, 3.0, 6.5, 5.0]
    assert discounted_sum(x_T, offsets, 0.0).tolist() == x_T.tolist()
    assert discounted_sum(x_T[:0], torch.tensor([0]), 0.5).tolist() == []


def test_the_blocks_of_a_discounted_sum_show_nowhere(monkeypatch):
    length_B = torch.randint(0, 9, (40,))
    x_T, offsets = torch.randn(int(length_B.sum())), torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
    at_once_T = discounted_sum(x_T, offsets, 0.9)
    monkeypatch.setattr(values, "_BLOCK", 7)
    assert torch.equal(discounted_sum(x_T, offsets, 0.9), at_once_T)


def test_a_long_row_neither_underflows_nor_drifts():
    x_T = torch.ones(5000, dtype=torch.float64)
    expected = (1 - 0.9 ** torch.arange(5000, 0, -1).double()) / 0.1
    assert_close(discounted_sum(x_T, torch.tensor([0, 5000]), 0.9), expected)


def test_advantages_skip_what_is_masked():
    mask_T, offsets = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 3, 5])
    reward_T = torch.tensor([0.0, 1.0, 9.0, 9.0, 9.0])
    value_T = torch.tensor([0.2, 0.4, 9.0, 9.0, 9.0])
    estimate = gae(Tokens(reward_T, value_T, mask_T, offsets), 1.0, 0.5)
    assert_close(estimate.advantage_T, torch.tensor([0.5, 0.6, 0.0, 0.0, 0.0]))
    assert_close(estimate.return_T, torch.tensor([0.7, 1.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 1.0), (0.9, 0.5)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_an_outcome_is_a_reward_at_the_last_live_token(gamma, lam, is_masked):
    mask_T = torch.tensor([1, 1, 0, 1, 0, 0, 1]) if is_masked else torch.ones(7, dtype=torch.int64)
    offsets = torch.tensor([0, 4, 4, 7])
    reward_B, value_T = torch.tensor([1.0, 5.0, -2.0]).double(), torch.randn(7, dtype=torch.float64)
    paid_T = torch.zeros(7, dtype=torch.float64)
    paid_T[3], paid_T[6] = 1.0, -2.0
    expected = gae(Tokens(paid_T, value_T, mask_T, offsets), gamma, lam)
    estimate = outcome_gae(reward_B, (value_T, offsets), mask_T, gamma, lam)
    assert_close(estimate.advantage_T, expected.advantage_T)
    assert_close(estimate.return_T, expected.return_T)


def test_whitened_tokens_have_mean_zero_and_variance_one():
    x_T, mask_T = torch.randn(50, dtype=torch.float64), torch.rand(50) < 0.6
    white_T = whiten(x_T, mask_T)
    assert white_T[~mask_T].abs().sum() == 0
    assert white_T[mask_T].mean().item() == pytest.approx(0, abs=1e-12)
    assert white_T[mask_T].var().item() == pytest.approx(1, abs=1e-6)
    assert whiten(x_T, torch.zeros(50)).tolist() == [0.0] * 50


@pytest.mark.parametrize("reward", [0.3, 100.1, 1000.1, 1e6])
def test_equal_returns_whiten_to_zero_in_single_precision_however_large(reward):
    assert whiten(torch.full((100_003,), reward), torch.ones(100_003)).count_nonzero() == 0


def test_rewards_far_from_zero_whiten_as_those_near_it():
    near_T = (torch.rand(1000) > 0.5).float()
    torch.testing.assert_close(whiten(near_T + 1e6, torch.ones(1000)), whiten(near_T, torch.ones(1000)))


def test_a_reward_is_paid_at_the_last_live_token():
    reward_B, mask_T = torch.tensor([1.0, 2.0]), torch.tensor([1, 1, 0, 0, 0])
    assert reward_to_go(reward_B, mask_T, torch.tensor([0, 3, 5]), 0.5).tolist() == [0.5, 1.0, 0.0, 0.0, 0.0]
