from itertools import product

import pytest
import torch

from megatron_rl.ops.baselines import rloo
from megatron_rl.ops.filters import ever_solved, overlong_penalty, varied


def test_constant_groups_are_dropped_and_lone_rollouts_stay():
    metric_B = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.1, 0.1, 0.1])
    group_B = torch.tensor([0, 1, 1, 0, 2, 3, 3, 3])
    assert varied(metric_B, group_B).tolist() == [False, False, True, False]


def test_a_prompt_is_kept_by_one_strictly_positive_reward():
    reward_B, group_B = torch.tensor([0.0, -1.0, -1.0, 1.0, 0.0, 0.0]), torch.tensor([0, 1, 2, 2, 0, 1])
    assert ever_solved(reward_B, group_B).tolist() == [False, False, True]


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.8])
def test_keeping_mixed_groups_scales_the_gradient_by_one_over_their_odds(chance):
    rollouts, slope, mixed = 4, 0.0, 0.0
    group_B = torch.zeros(rollouts, dtype=torch.int64)
    for outcome in product((0.0, 1.0), repeat=rollouts):
        reward_B = torch.tensor(outcome, dtype=torch.float64)
        odds = float(torch.where(reward_B == 1, chance, 1 - chance).prod())
        if varied(reward_B, group_B).item():
            mixed += odds
            slope += odds * float(((reward_B - chance) * (reward_B - rloo(reward_B, group_B))).mean())
    assert slope / mixed == pytest.approx(chance * (1 - chance) / mixed)


def test_overlong_responses_pay_along_a_line():
    length_B = torch.tensor([10.0, 16.0, 18.0, 20.0, 21.0])
    assert overlong_penalty(length_B, 20, 4, 2.0).tolist() == [0.0, 0.0, -1.0, -2.0, -2.5]
