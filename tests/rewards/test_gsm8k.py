import pytest

from megatron_rl.answers import Question
from megatron_rl.rewards.gsm8k import Gsm8k


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so #### 1,042", 1, 0),
        ("it is 42 and then 1042", 0, 1),
        ("#### 1042.", 0, 0),
        ("#### $1042", 0, 1),
        ("none", 0, 0),
    ],
)
def test_strict_wants_the_mark_and_flexible_the_last_number(text, strict, flexible):
    question = Question(response=text, answer="1042")
    assert Gsm8k()(question).correct == strict
    assert Gsm8k(mode="flexible")(question).correct == flexible


def test_the_extracted_number_is_told():
    assert Gsm8k()(Question(response="#### 1,042", answer="7")).extracted == "1042"
    assert Gsm8k()(Question(response="no", answer="7")).extracted is None
