"""Screening's odds, its bias, and the gradient scale that training on the screened part brings."""

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops import screening
from megatron_rl.ops.baselines import rloo

SCREEN, MORE, GROUPS = 4, 6, 40_000


def simulated(chance):
    """Rewards [G, screen + more] of accepted prompts, and the share accepted."""
    generator = torch.Generator().manual_seed(int(chance * 100))
    draws_GK = torch.rand(GROUPS, SCREEN + MORE, generator=generator, dtype=torch.float64)
    reward_GK = (draws_GK < chance).double()
    group_B = torch.repeat_interleave(torch.arange(GROUPS), SCREEN)
    accept_G = screening.classify(reward_GK[:, :SCREEN].flatten(), group_B).accept_G
    return reward_GK[accept_G], float(accept_G.double().mean())


def gradient_scale(reward_GK, chance):
    group_B = torch.repeat_interleave(torch.arange(len(reward_GK)), reward_GK.shape[1])
    reward_B = reward_GK.flatten()
    slope = ((reward_B - chance) * (reward_B - rloo(reward_B, group_B))).mean()
    return float(slope) / (chance * (1 - chance))


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5, 0.8])
def test_acceptance_bias_and_gradient_scale_match_simulation(chance):
    reward_GK, accepted = simulated(chance)
    expected = screening.selection(torch.tensor(chance, dtype=torch.float64), SCREEN, MORE)
    assert accepted == pytest.approx(float(expected.accept_probability), abs=0.01)
    assert float(reward_GK[:, :SCREEN].mean()) == pytest.approx(float(expected.screen_mean), abs=0.01)
    assert float(reward_GK.mean()) == pytest.approx(float(expected.train_mean), abs=0.01)
    assert gradient_scale(reward_GK, chance) == pytest.approx(float(expected.gradient_scale), abs=0.05)


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5, 0.8])
def test_continuations_alone_are_unbiased(chance):
    reward_GK, _ = simulated(chance)
    assert float(reward_GK[:, SCREEN:].mean()) == pytest.approx(chance, abs=0.01)
    assert gradient_scale(reward_GK[:, SCREEN:], chance) == pytest.approx(1.0, abs=0.03)


def test_the_published_gradient_scales():
    p = torch.tensor([0.01, 0.05, 0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    scale = screening.selection(p, 4, 20).gradient_scale
    assert scale.tolist() == pytest.approx([5.03, 1.70, 1.29, 1.03, 1.003, 1.29], abs=0.006)


def test_bounds_are_exclusive():
    correct_B, group_B = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert screening.classify(correct_B, group_B).accept_G.tolist() == [False, True, False, True]
    assert not screening.classify(correct_B, group_B, low=0.5).accept_G.any()


def test_the_odds_of_acceptance_are_binomial():
    p = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    assert_close(screening.accept_probability(p, 4), screening.mixed_probability(p, 4))
    assert screening.accept_probability(p, 4).tolist() == pytest.approx([0, 0.3438, 0.875, 0])
    assert screening.accept_probability(p, 4, low=0.25, high=0.75)[2].item() == pytest.approx(6 / 16)
    assert screening.accept_probability(p, 1).tolist() == [0.0] * 4


def test_rare_successes_keep_their_digits():
    p = torch.tensor([1e-18, 1 - 2.0**-52], dtype=torch.float64)
    assert screening.mixed_probability(p, 4).tolist() == pytest.approx([4e-18, 4 * 2.0**-52], rel=1e-9)


def test_hopeless_prompts_cost_without_end():
    assert screening.cost(torch.zeros(3), 4, 20).screened_rollouts.item() == float("inf")
    half = screening.cost(torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64), 4, 20)
    assert half.screened_rollouts.item() == pytest.approx(4 / 0.4375 + 20)
    assert float(half.screened_rollouts) < float(half.dynamic_rollouts)


def test_the_signal_vanishes_with_the_spread():
    bound, factor = screening.signal(torch.tensor([0.0, 0.25, 1.0]), 24)
    assert bound.tolist() == [0.0, 18.0, 0.0]
    assert factor.tolist() == pytest.approx([float("-inf"), 0.5 * (1 - 1 / 18), float("-inf")])
