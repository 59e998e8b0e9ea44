import math

import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import OPTIMAL_VALUE, REFERENCE_REWARDS, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.optimal_value import OptimalValue

CONTEXT = Context(step=0, version=0, seed=0)


def values(rewards, beta):
    batch = Batch.of({REFERENCE_REWARDS: rewards, REWARD: [1.0] * len(rewards)})
    return OptimalValue(beta=beta)(batch, None, CONTEXT)[0][OPTIMAL_VALUE]


def test_the_worked_examples_of_four_and_one_right_of_eight():
    found = values([[1.0] * 4 + [0.0] * 4, [1.0] + [0.0] * 7], beta=0.5)
    torch.testing.assert_close(found, torch.tensor([0.716890, 0.293513], dtype=torch.float64), atol=1e-6, rtol=0)


def test_its_limits_are_the_best_and_the_mean_reward():
    assert values([[1.0, 0.0, 0.0, 0.0]], beta=0.0).tolist() == [1.0]
    assert values([[1.0, 0.0, 0.0, 0.0]], beta=math.inf).tolist() == [0.25]


def test_a_prompt_without_a_value_run_is_refused():
    with pytest.raises(ValueError, match="megatron-rl values"):
        values([[1.0], []], beta=0.5)
