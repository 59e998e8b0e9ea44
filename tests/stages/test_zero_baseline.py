from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.zero_baseline import ZeroBaseline


def test_the_baseline_is_zero():
    assert ZeroBaseline()(Batch.of({REWARD: [1.0, 0.5]}), None, Context(step=0, version=0, seed=0))[0][
        BASELINE
    ].tolist() == [0.0, 0.0]
