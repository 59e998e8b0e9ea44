import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, REWARD, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context
from megatron_rl.spec.schema import SpecError
from megatron_rl.stages.overlong_penalty import OverlongPenalty


@pytest.mark.parametrize(
    ("written", "budget", "lengths"),
    [
        ({}, 20480, (20480, 4096)),
        ({}, 56, (56, 11)),
        ({}, 3, (3, 1)),
        ({"buffer_tokens": 2048}, 8192, (8192, 2048)),
        ({"max_tokens": 40}, 56, (40, 8)),
        ({"max_tokens": 60, "buffer_tokens": 20}, 56, (60, 20)),
    ],
)
def test_lengths_follow_the_response_budget_unless_they_were_written(written, budget, lengths):
    stage = OverlongPenalty(**written).within(budget)
    assert (stage.max_tokens, stage.buffer_tokens) == lengths


@pytest.mark.parametrize("written", [{"max_tokens": 70}, {"buffer_tokens": 57}], ids=["none comes near", "longer"])
def test_lengths_that_the_budget_makes_senseless_are_refused(written):
    with pytest.raises(SpecError, match=r"overlong_penalty .* sampling\.max_tokens is 56"):
        OverlongPenalty(**written).within(56)


def test_without_lengths_nothing_is_shaped():
    batch = Batch.of({REWARD: [1.0], TOKENS: Ragged.of([[7]])})
    with pytest.raises(ValueError, match="has no lengths"):
        OverlongPenalty()(batch, None, Context(step=0, version=0, seed=0))


def test_the_reward_falls_along_a_line_and_correct_stays():
    batch = Batch.of({REWARD: [1.0, 1.0, 0.0], CORRECT: [1, 1, 0], TOKENS: Ragged.of([[7] * 16, [7] * 18, [7] * 20])})
    stage = OverlongPenalty(max_tokens=20, buffer_tokens=4, factor=2.0)
    shaped, _ = stage(batch, None, Context(step=0, version=0, seed=0))
    assert shaped.numbers(REWARD).tolist() == [1.0, 0.0, -2.0]
    assert shaped.numbers(CORRECT).tolist() == [1, 1, 0]
    assert shaped.metrics["overlong_penalty/mean"] == -1.0
