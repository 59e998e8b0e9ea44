import itertools
import math

import pytest
import torch

from megatron_rl.ops.accuracy import estimate, majority, pass_at


def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_one():
    correct = [1, 0, 0, 1, 0]
    for k in range(1, 6):
        subsets = list(itertools.combinations(correct, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert math.isclose(float(pass_at(k, torch.tensor(correct), torch.zeros(5, dtype=torch.int64))[0]), expected)


def test_pass_at_one_is_the_mean():
    correct_B, prompt_B = torch.tensor([1, 0, 1, 1]), torch.tensor([1, 0, 1, 0])
    assert pass_at(1, correct_B, prompt_B).tolist() == [0.5, 1.0]


def test_too_few_rollouts_are_refused():
    with pytest.raises(ValueError, match="pass@3 needs 3"):
        pass_at(3, torch.tensor([1, 0]), torch.tensor([0, 0]))


def test_the_majority_is_right_or_wrong_as_a_whole_and_ties_share():
    extracted = ["5", "5", "7", "3", "4", "", ""]
    correct_B, prompt_B = torch.tensor([1, 1, 0, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert majority(extracted, correct_B, prompt_B).tolist() == [1.0, 0.5, 0.0]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        draws = (torch.rand(60, 4, generator=generator) < torch.linspace(0.6, 1.0, 60)[:, None]).double().mean(1)
        found = estimate(draws)
        covered += found.low <= 0.8 <= found.high
    assert covered / 400 > 0.93


def test_prompts_that_all_agree_still_leave_doubt():
    found = estimate(torch.ones(50))
    assert found.mean == found.high == 1.0
    assert 0.9 < found.low < 0.94
