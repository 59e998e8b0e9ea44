import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.leave_one_out_baseline import LeaveOneOutBaseline


def test_each_rollout_is_measured_by_the_others_of_its_group():
    batch = Batch.of({GROUP: [0, 0, 0, 1], REWARD: [1.0, 0.0, 0.0, 1.0]})
    baseline, _ = LeaveOneOutBaseline()(batch, None, Context(step=0, version=0, seed=0))
    torch.testing.assert_close(baseline[BASELINE], torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64))
