import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, REWARD, SPREAD
from megatron_rl.ops.baselines import grpo
from megatron_rl.ports import Context
from megatron_rl.stages.group_baseline import GroupBaseline

CONTEXT = Context(step=0, version=0, seed=0)
BATCH = Batch.of({GROUP: [0, 0, 0, 0, 1, 1, 2], REWARD: [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]})


def test_centred_and_divided_it_is_grpos_advantage():
    scored, _ = GroupBaseline()(BATCH, None, CONTEXT)
    advantage_B = (BATCH[REWARD] - scored[BASELINE]) / scored[SPREAD]
    torch.testing.assert_close(advantage_B, grpo(BATCH[REWARD], BATCH.group_index()))


def test_without_scale_it_is_dr_grpos():
    scored, _ = GroupBaseline(scale=False)(BATCH, None, CONTEXT)
    assert scored[SPREAD].tolist() == [1.0] * 7
    assert scored[BASELINE].tolist() == [0.25] * 4 + [1.0] * 2 + [0.0]


def test_the_share_of_groups_that_agree_is_reported():
    scored, _ = GroupBaseline()(BATCH, None, CONTEXT)
    assert abs(scored.metrics["group/constant_share"] - 1 / 3) < 1e-12
