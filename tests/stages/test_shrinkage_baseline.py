import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, PROMPT_ID, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.shrinkage_baseline import ShrinkageBaseline

CONTEXT = Context(step=0, version=0, seed=0)


def test_the_worked_example_of_three_prompts():
    batch = Batch.of({PROMPT_ID: list("aabbcc"), GROUP: [0, 0, 1, 1, 2, 2], REWARD: [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]})
    shrunk, _ = ShrinkageBaseline()(batch, None, CONTEXT)
    torch.testing.assert_close(shrunk[BASELINE], torch.tensor([0, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    assert abs(shrunk.metrics["shrinkage/weight_max"] - 4 / 9) < 1e-12


def test_two_draws_of_one_prompt_are_one_group():
    drawn_twice = Batch.of(
        {PROMPT_ID: list("aaaabb"), GROUP: [0, 0, 1, 1, 2, 2], REWARD: [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]}
    )
    drawn_once = drawn_twice.with_columns(group=[0, 0, 0, 0, 2, 2])
    assert (
        ShrinkageBaseline()(drawn_twice, None, CONTEXT)[0][BASELINE].tolist()
        == ShrinkageBaseline()(drawn_once, None, CONTEXT)[0][BASELINE].tolist()
    )
