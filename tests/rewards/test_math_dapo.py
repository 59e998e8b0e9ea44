import pytest

from megatron_rl.answers import Question
from megatron_rl.rewards.math_dapo import MathDapo, normal


def score(response, answer="34", **fields):
    return MathDapo(**fields)(Question(response=response, answer=answer))


def test_the_last_answer_line_near_the_end_decides():
    assert score("Answer: 12\nAnswer: $34$").reward == 1.0
    assert score("Answer: 34\nAnswer: 12").reward == -1.0
    assert score("Answer: 34" + " " * 300).extracted is None


def test_a_wrong_answer_may_cost_nothing():
    found = score("Answer: 12", wrong=0.0)
    assert (found.reward, found.correct, found.extracted) == (0.0, 0, "12")


def test_a_box_counts_only_where_asked_for():
    assert score(r"so \boxed{34}").correct == 0
    assert score(r"so \boxed{34}", box_fallback=True).correct == 1
    assert score("Answer: 12 \\boxed{34}\n", box_fallback=True).correct == 0


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$x = 12,000$ dollars", "12000"),
        (r"\text{east}", "east"),
        (r"$\frac12$", r"\frac{1}{2}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"45^\circ", "45"),
        (r"\boxed{7}", "7"),
        ("5 square units", "5"),
    ],
)
def test_dressing_units_and_spaces_do_not_count(written, meant):
    assert normal(written) == meant
