import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, RESPONSE_TEXT, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.cosine_reward import CosineReward


def rewards(lengths, correct, **settings):
    given = {REWARD: [7.0] * len(lengths), CORRECT: correct, RESPONSE_TEXT: ["x" * length for length in lengths]}
    batch = Batch.of(given)
    shaped, _ = CosineReward(**settings)(batch, None, Context(step=0, version=0, seed=0))
    assert shaped.numbers(CORRECT).tolist() == correct
    return shaped.numbers(REWARD).tolist()


def test_right_answers_lose_and_wrong_ones_gain_with_length_up_to_the_limit():
    assert rewards([0, 500, 1000, 5000], [1, 1, 1, 1]) == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert rewards([0, 500, 1000, 5000], [0, 0, 0, 0]) == pytest.approx([-0.5, -0.25, 0.0, 0.0])


def test_the_curve_is_a_cosine_and_the_weight_scales_all_of_it():
    assert rewards([250], [1], weight=2.0) == pytest.approx([2 * (1.0 - 0.5 * 0.5 * (1 - 0.5**0.5))])
    assert rewards([10], [0], characters=20, wrong=(-1.0, -0.5)) == pytest.approx([-0.75])


def test_any_right_answer_is_worth_more_than_any_wrong_one():
    lengths = list(range(0, 2000, 97))
    assert min(rewards(lengths, [1] * len(lengths))) > max(rewards(lengths, [0] * len(lengths)))
