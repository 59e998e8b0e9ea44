"""Run with: PYTHONPATH=examples/median_of_means pytest examples/median_of_means"""

import torch
from median_of_means_baseline import MedianOfMeansBaseline
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD, SLOT
from megatron_rl.ports import Context, Stage
from megatron_rl.stages.leave_one_out_baseline import LeaveOneOutBaseline

CONTEXT = Context(step=0, version=0, seed=0)


def baselines(stage: Stage, rewards: list[float]) -> Tensor:
    count = len(rewards)
    batch = Batch.of({REWARD: rewards, GROUP: [0] * count, SLOT: list(range(count))})
    return stage(batch, None, CONTEXT)[0].numbers(BASELINE)


def test_one_wild_reward_does_not_move_the_others_baselines() -> None:
    assert baselines(MedianOfMeansBaseline(parts=3), [0.0, 1.0, 1.0, 100.0]).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_one_part_is_rloo() -> None:
    rewards = [0.0, 1.0, 0.5, 1.0]
    torch.testing.assert_close(
        baselines(MedianOfMeansBaseline(parts=1), rewards), baselines(LeaveOneOutBaseline(), rewards)
    )


def test_a_baseline_does_not_depend_on_its_own_reward() -> None:
    one, other = (baselines(MedianOfMeansBaseline(), [reward, 1.0, 0.0, 1.0, 0.0])[0] for reward in (0.0, 9.0))
    assert one == other


def test_a_rollout_alone_has_nothing_to_be_measured_by() -> None:
    assert baselines(MedianOfMeansBaseline(), [1.0]).tolist() == [0.0]
