"""JSPO's claims about its baseline, with the controls that must break them, and the baselines it is compared with."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from megatron_rl.ops.baselines import (
    bloo,
    centred,
    grpo,
    remax,
    rloo,
    shrinkage,
    shrinkage_as_released,
    shrinkage_risk,
)
from megatron_rl.ops.segments import group_moments

SIZES = (3, 1, 4, 2, 5)


def random_groups(seed, sizes=SIZES):
    group_B = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    reward_B = torch.rand(len(group_B), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return reward_B, group_B


def flat(*groups):
    group_B = torch.tensor([at for at, group in enumerate(groups) for _ in group])
    return torch.tensor([reward for group in groups for reward in group], dtype=torch.float64), group_B


def slopes(baseline, chances=(0.2, 0.5, 0.7), rollouts=2):
    """Per prompt E[(r - p) A] / (p (1 - p)) over every outcome: 1 for an unbiased gradient."""
    group_B = torch.repeat_interleave(torch.arange(len(chances)), rollouts)
    chance_B = torch.tensor(chances, dtype=torch.float64)[group_B]
    total_B = torch.zeros_like(chance_B)
    for outcome in product((0.0, 1.0), repeat=len(group_B)):
        reward_B = torch.tensor(outcome, dtype=torch.float64)
        probability = torch.where(reward_B == 1, chance_B, 1 - chance_B).prod()
        total_B += probability * (reward_B - chance_B) * (reward_B - baseline(reward_B, group_B))
    return total_B / (chance_B * (1 - chance_B))


def full_group_mean(reward_B, group_B):
    return group_moments(reward_B, group_B).mean_G[group_B]


def weight_from_all_prompts(reward_B, group_B):
    """The blend with a weight that has seen the prompt's own rewards."""
    size_G, mean_G, variance_G = group_moments(reward_B, group_B)
    noise, spread = (variance_G / size_G).mean(), mean_G.var(correction=0)
    weight = noise / (noise + spread) if noise > 0 else 0.0
    return (1 - weight) * rloo(reward_B, group_B) + weight * bloo(reward_B, group_B)


@pytest.mark.parametrize("baseline", [rloo, bloo, lambda *rows: shrinkage(*rows).baseline_B])
def test_leave_one_out_baselines_leave_the_gradient_unbiased(baseline):
    assert_close(slopes(baseline), torch.ones(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("baseline", [full_group_mean, weight_from_all_prompts])
def test_a_baseline_that_has_seen_the_reward_is_biased(baseline):
    assert float((slopes(baseline) - 1).abs().min()) > 0.01


def test_the_full_group_mean_only_scales_the_gradient():
    assert_close(slopes(full_group_mean), torch.full((6,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_a_baseline_ignores_the_reward_it_is_subtracted_from(seed):
    reward_B, group_B = random_groups(seed)
    before = shrinkage(reward_B, group_B)
    for row in range(len(reward_B)):
        after = shrinkage(reward_B.index_fill(0, torch.tensor([row]), 7.0), group_B)
        assert_close(after.baseline_B[row], before.baseline_B[row], atol=1e-12, rtol=0)
        assert_close(after.weight_G[group_B[row]], before.weight_G[group_B[row]], atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_shrinkage_is_a_blend_of_the_two_leave_one_out_baselines(seed):
    reward_B, group_B = random_groups(seed)
    shrunk = shrinkage(reward_B, group_B)
    weight_B = shrunk.weight_G[group_B]
    blend_B = (1 - weight_B) * rloo(reward_B, group_B) + weight_B * bloo(reward_B, group_B)
    assert_close(shrunk.baseline_B, blend_B)


@pytest.mark.parametrize("seed", range(5))
def test_the_weight_never_exceeds_the_share_of_the_other_prompts(seed):
    sizes = (2, 3, 4, 2)
    weight_G = shrinkage(*random_groups(seed, sizes)).weight_G
    assert float(weight_G.min()) >= 0
    assert float(weight_G.max()) <= (len(sizes) - 1) / len(sizes) + 1e-15


def test_an_offset_moves_the_baseline_and_a_factor_scales_it():
    reward_B, group_B = random_groups(1)
    baseline_B = shrinkage(reward_B, group_B).baseline_B
    assert_close(shrinkage(reward_B + 1e6, group_B).baseline_B, baseline_B + 1e6, atol=1e-7, rtol=0)
    assert_close(shrinkage(-3 * reward_B, group_B).baseline_B, -3 * baseline_B)


def test_the_order_of_prompts_and_rollouts_is_free():
    reward_B, group_B = random_groups(2)
    shuffle_B = torch.randperm(len(reward_B), generator=torch.Generator().manual_seed(3))
    rename_G = torch.tensor([4, 2, 0, 3, 1])
    baseline_B = shrinkage(reward_B, group_B).baseline_B
    assert_close(shrinkage(reward_B[shuffle_B], rename_G[group_B[shuffle_B]]).baseline_B, baseline_B[shuffle_B])


@pytest.mark.parametrize(
    ("rollouts", "change", "kept"), [(2, -0.56, 0.62), (4, -0.43, 0.68), (8, -0.29, 0.77), (16, -0.17, 0.85)]
)
def test_shrinking_lowers_the_error_of_the_baseline(rollouts, change, kept):
    prompts, batches = 32, 300
    torch.manual_seed(rollouts)
    group_B = torch.repeat_interleave(torch.arange(prompts), rollouts)
    shrunk_error, own_error, own_share = [], [], []
    for chance_G in torch.distributions.Beta(1.2, 2.2).sample((batches, prompts)).double():
        chance_B = chance_G[group_B]
        reward_B = torch.bernoulli(chance_B)
        shrunk = shrinkage(reward_B, group_B)
        shrunk_error.append((shrunk.baseline_B - chance_B).square().mean())
        own_error.append((rloo(reward_B, group_B) - chance_B).square().mean())
        own_share.append(1 - shrunk.weight_G.mean())
    assert float(sum(shrunk_error) / sum(own_error)) - 1 == pytest.approx(change, abs=0.03)
    assert float(sum(own_share)) / batches == pytest.approx(kept, abs=0.02)


def test_a_constant_group_among_mixed_ones_is_pushed():
    reward_B, group_B = flat([1, 0], [1, 1], [0, 0])
    advantage_B = reward_B - shrinkage(reward_B, group_B).baseline_B
    assert_close(advantage_B, torch.tensor([1, -1, 1 / 3, 1 / 3, -1 / 3, -1 / 3], dtype=torch.float64))


def test_prompts_that_never_vary_learn_nothing():
    reward_B, group_B = flat([0.1, 0.1, 0.1], [0.7, 0.7], [0.1] * 6)
    shrunk = shrinkage(reward_B, group_B)
    assert (reward_B - shrunk.baseline_B).tolist() == [0.0] * 11
    assert shrunk.weight_G.tolist() == [0.0] * 3


@pytest.mark.parametrize("variant", [shrinkage, shrinkage_as_released])
def test_a_prompt_alone_falls_back_to_its_own_mean(variant):
    reward_B, group_B = flat([1, 0, 1, 1])
    assert_close(variant(reward_B, group_B).baseline_B, rloo(reward_B, group_B))


def test_two_prompts_share_evenly_when_the_other_has_spread():
    assert shrinkage(*flat([1, 0, 0], [1, 1, 0])).weight_G.tolist() == [0.5, 0.5]


def test_single_rollouts_take_the_other_prompts_mean():
    shrunk = shrinkage(*flat([1], [0], [1]))
    assert shrunk.baseline_B.tolist() == [0.5, 1.0, 0.5]
    assert shrunk.weight_G.tolist() == [1.0, 1.0, 1.0]


def test_one_rollout_in_all_is_compared_with_nothing():
    assert shrinkage(*flat([3.0])).baseline_B.tolist() == [0.0]


def test_an_outlier_does_not_blur_the_spread_of_the_others():
    shrunk = shrinkage(*flat([1e8, 1e8], [1, 0], [1, 1], [0, 0]))
    assert shrunk.spread_G[0].item() == pytest.approx(1 / 6, rel=1e-12)
    assert shrunk.noise_G[0].item() == pytest.approx(1 / 12, rel=1e-12)


def test_group_baselines_of_lone_rollouts():
    reward_B, group_B = flat([2.0], [1.0, 3.0])
    assert centred(reward_B, group_B).tolist() == [2.0, -1.0, 1.0]
    assert rloo(reward_B, group_B).tolist() == [0.0, 3.0, 1.0]
    assert bloo(reward_B, group_B).tolist() == [2.0, 2.0, 2.0]
    assert_close(grpo(reward_B, group_B, eps=0.0), torch.tensor([2.0, -(0.5**0.5), 0.5**0.5], dtype=torch.float64))


def test_remax_compares_with_the_greedy_rollout():
    assert remax(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).tolist() == [0.0, -1.0]


def test_the_population_optimum_is_a_minimum():
    risk = shrinkage_risk(torch.tensor(0.16), torch.tensor(0.04), prompts=8, rollouts=5)
    assert risk.weight_paper.item() == pytest.approx(0.4375)
    assert float(risk.error_exact) <= float(risk.error_paper) < float(risk.error_own) < float(risk.error_others)


def test_a_population_without_any_variance_needs_no_shrinkage():
    risk = shrinkage_risk(torch.tensor(0.0), torch.tensor(0.0), prompts=4, rollouts=2)
    assert (risk.weight_paper.item(), risk.weight_exact.item()) == (0.0, 0.0)


def test_an_optimum_needs_prompts_and_rollouts_to_weigh():
    with pytest.raises(ValueError, match="at least 2"):
        shrinkage_risk(torch.tensor(0.1), torch.tensor(0.1), prompts=1, rollouts=4)
