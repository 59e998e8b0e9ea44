from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, REWARD, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context
from megatron_rl.stages.overlong_penalty import OverlongPenalty


def test_the_reward_falls_along_a_line_and_correct_stays():
    batch = Batch.of({REWARD: [1.0, 1.0, 0.0], CORRECT: [1, 1, 0], TOKENS: Ragged.of([[7] * 16, [7] * 18, [7] * 20])})
    stage = OverlongPenalty(max_tokens=20, buffer_tokens=4, factor=2.0)
    shaped, _ = stage(batch, None, Context(step=0, version=0, seed=0))
    assert shaped.numbers(REWARD).tolist() == [1.0, 0.0, -2.0]
    assert shaped.numbers(CORRECT).tolist() == [1, 1, 0]
    assert shaped.metrics["overlong_penalty/mean"] == -1.0
