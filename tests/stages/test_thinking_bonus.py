import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, RESPONSE_TEXT, REWARD
from megatron_rl.ports import Context
from megatron_rl.stages.thinking_bonus import ThinkingBonus


@pytest.mark.parametrize(
    ("text", "is_in_form"),
    [
        ("so 2\n</think>\n\\boxed{2}", True),
        ("</think>\n2", True),
        ("so 2</think>\n2", False),
        ("so 2\n </think>\n2", False),
        ("a\n</think>\nb\n</think>\nc", False),
        ("a </think> b\n</think>\nc", False),
        ("2", False),
        ("", False),
    ],
)
def test_the_tag_stands_once_and_on_a_line_of_its_own(text, is_in_form):
    batch = Batch.of({REWARD: [0.25], CORRECT: [0], RESPONSE_TEXT: [text]})
    shaped, _ = ThinkingBonus(weight=2.0)(batch, None, Context(step=0, version=0, seed=0))
    assert shaped.numbers(REWARD).tolist() == [2.25 if is_in_form else 0.25]
    assert shaped.numbers(CORRECT).tolist() == [0]
    assert shaped.metrics["thinking_bonus/share"] == float(is_in_form)
