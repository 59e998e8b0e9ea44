import pytest

from megatron_rl.answers import Question
from megatron_rl.rewards.math import Math

MATH = Math()


def score(response, answer, reward=MATH):
    return reward(Question(response=response, answer=answer))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{0.5}", r"\frac{1}{2}"),
        (r"first \boxed{3}, no, \boxed{\frac{2}{4}}", "1/2"),
        (r"\boxed{1,000}", "1000"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2"),
        (r"\boxed{\{3,1\}}", r"\{1,3\}"),
        ("The final answer is 12.", "12"),
        ("thus $x = 7$", "7"),
        ("\\boxed{\u200b4\u200d2\u2060}", "42"),
        (r"\boxed{\text{Friday}}", r"\text{Friday}"),
    ],
)
def test_equal_mathematics_is_right(response, answer):
    assert score(response, answer).correct == 1


@pytest.mark.parametrize(("response", "answer"), [(r"\boxed{2} \boxed{3}", "2"), (r"\boxed{(1,2)}", "(2,1)")])
def test_other_mathematics_is_wrong(response, answer):
    found = score(response, answer)
    assert found.correct == 0
    assert found.extracted is not None


@pytest.mark.parametrize(
    "response", ["", "I give up", r"\boxed{}", r"\boxed{" + "7" * 401 + "}", r"\boxed{" + "1+" * 600 + "1}", "9" * 500]
)
def test_nothing_endless_digits_and_endless_answers_are_unparsable(response):
    assert score(response, "7").extracted is None


def test_plain_expressions_count_unless_latex_is_asked_for():
    assert score("it is 12", "12").correct == 1
    assert score("it is 12", "12", Math(expressions=False)).extracted is None
    assert score("it is $12$", "12", Math(expressions=False)).correct == 1


def test_only_the_end_is_searched_where_there_is_no_box():
    assert score("The final answer is 12." + " " * 2000, "12").extracted is None
