import pytest

from megatron_rl.answers import Question
from megatron_rl.rewards.function import Function

HERE = "tests.rewards.own_rewards"


def test_verls_signature_and_mapping_are_understood():
    question = Question(response="4", answer="4", source="set")
    score = Function(path=f"{HERE}:compute_score")(question)
    assert (score.reward, score.correct, score.extracted) == (1.0, 1, "set")
    assert Function(path=f"{HERE}:compute_score")(Question(response="5", answer="4")).reward == 0.5


def test_a_function_of_a_question_may_return_a_number():
    score = Function(path=f"{HERE}:length_reward", right_from=0.5)(Question(response="", answer="", length=7))
    assert (score.reward, score.correct) == (0.7, 1)


def test_a_number_of_numpys_is_a_number_and_a_text_is_none():
    question = Question(response="4", answer="4")
    score = Function(path=f"{HERE}:numpys_number")(question)
    assert (score.reward, score.correct, type(score.reward)) == (0.5, 1, float)
    with pytest.raises(TypeError, match=r"returned '1\.0'; a reward is a Score, a number"):
        Function(path=f"{HERE}:text")(question)


def test_a_function_of_something_else_is_refused_with_what_is_possible():
    with pytest.raises(ValueError, match=r"takes \['solution', 'truth'\]; a reward takes one Question, or data_source"):
        Function(path=f"{HERE}:two_arguments")


def test_a_path_that_names_nothing_is_refused():
    with pytest.raises(ValueError, match="no function"):
        Function(path=f"{HERE}:nobody")
