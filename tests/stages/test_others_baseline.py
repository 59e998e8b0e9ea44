from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, PROMPT_ID, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.others_baseline import OthersBaseline


def test_each_prompt_is_measured_by_the_others():
    batch = Batch.of({PROMPT_ID: list("aabbcc"), REWARD: [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]})
    others, _ = OthersBaseline()(batch, None, Context(step=0, version=0, seed=0))
    assert others[BASELINE].tolist() == [0.5, 0.5, 0.25, 0.25, 0.75, 0.75]
