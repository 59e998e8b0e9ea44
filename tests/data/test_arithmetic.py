import numpy as np
import pytest

from megatron_rl.answers import Question
from megatron_rl.data.arithmetic import Arithmetic, Problem, Step, demonstration, draw
from megatron_rl.rewards.exact import Exact

PROBLEM = Problem(first=47, steps=(Step("+", 5), Step("*", 3)), order=(0, 2, 1))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_text_the_steps_and_the_answer_of_a_problem():
    assert PROBLEM.text == "<q> a 4 7 ; c * 3 ; b + 5 ; c ? <think>"
    assert PROBLEM.values == (47, 52, 56)
    assert demonstration(PROBLEM, rng()) == "a 4 7 b + 5 5 2 c * 3 5 6 <answer> 5 6 <eos>"
    assert demonstration(PROBLEM, rng(), guess=1.0) == "<answer> 5 6 <eos>"


def test_values_stay_between_0_and_99():
    assert Step("-", 9).of(4) == 95
    assert Problem(first=11, steps=(Step("-", 6),), order=(0, 1)).answer == "0 5"


def test_a_slip_is_carried_on():
    said = demonstration(PROBLEM, rng(), slip=1.0).split()
    first = int(said[6] + said[7])
    second = int(said[11] + said[12])
    assert first != 52
    assert second != first * 3 % 100
    assert said[-3:-1] == said[11:13]


def test_slips_and_guesses_are_as_frequent_as_asked():
    random = rng()
    problems = [draw(random, 4) for _ in range(2000)]
    said = [demonstration(problem, random, guess=0.75, slip=0.1) for problem in problems]
    guesses = [text.startswith("<answer>") for text in said]
    assert np.mean(guesses) == pytest.approx(0.75, abs=0.03)
    right = [
        text.endswith(f"<answer> {problem.answer} <eos>")
        for text, problem, guess in zip(said, problems, guesses, strict=True)
        if not guess
    ]
    assert np.mean(right) == pytest.approx(0.9**4, abs=0.06)


def test_problems_are_different_spread_over_levels_and_follow_from_the_seed():
    problems = list(Arithmetic().problems(800, seed=1))
    assert len({problem.text for problem in problems}) == 800
    levels = np.bincount([problem.level for problem in problems], minlength=9)[1:]
    assert levels.min() > 60
    assert [problem.text for problem in Arithmetic().problems(10, seed=1)] == [each.text for each in problems[:10]]
    assert np.mean([len(problem.text.split()) for problem in problems]) == pytest.approx(26, abs=1)


def test_held_out_problems_are_new():
    trained = {problem.text for problem in Arithmetic(hardest=1).problems(1500, seed=1)}
    held_out = {problem.text for problem in Arithmetic(hardest=1).problems(300, seed=2, without=trained)}
    assert not trained & held_out


def test_asking_for_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="hardly more than"):
        list(Arithmetic(hardest=1).problems(10_000, seed=0))
    with pytest.raises(ValueError, match="easiest"):
        list(Arithmetic(easiest=3, hardest=2).problems(1, seed=0))


def test_the_exact_reward_takes_its_demonstrations():
    prompt = PROBLEM.prompt
    reward = Exact(after="<answer>", finished=True)
    said = demonstration(PROBLEM, rng()).removesuffix(" <eos>")
    assert reward(Question(response=said, answer=prompt.answer)).correct == 1
    assert reward(Question(response=said, answer=prompt.answer, finish="length")).correct == 0
    assert (prompt.source, prompt.extra) == ("arithmetic", {"level": 2})
