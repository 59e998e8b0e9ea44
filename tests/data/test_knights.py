import itertools
import re

import pytest

from megatron_rl.answers import Question
from megatron_rl.data.knights import Knights, claim, holds, solve
from megatron_rl.rewards.knights import Knights as KnightsReward
from megatron_rl.rewards.knights_official import KnightsOfficial


@pytest.fixture(scope="module")
def made():
    return list(Knights().prompts(70, seed=3))


def test_every_puzzle_has_exactly_its_solution(made):
    for prompt in made:
        statements, solution = prompt.extra["statements"], prompt.extra["solution"]
        consistent = [
            list(roles)
            for roles in itertools.product([True, False], repeat=len(statements))
            if all(holds(statement, roles) == role for statement, role in zip(statements, roles, strict=True))
        ]
        assert consistent == [solution]


def test_two_to_eight_people_come_equally_often(made):
    sizes = [len(prompt.extra["names"]) for prompt in made]
    assert sorted(set(sizes)) == list(range(2, 9))
    assert {sizes.count(size) for size in sizes} == {10}
    assert {prompt.source for prompt in made} == {f"knights/{size}" for size in range(2, 9)}


def test_puzzles_differ_and_follow_from_the_seed(made):
    assert len({prompt.identity for prompt in made}) == len(made)
    assert [prompt.identity for prompt in Knights().prompts(20, seed=3)] == [prompt.identity for prompt in made[:20]]
    assert next(Knights().prompts(1, seed=4)).identity != made[0].identity


def test_both_rewards_take_its_own_answer(made):
    for prompt in made:
        question = Question(response=f"\\boxed{{{prompt.answer}}}", answer=prompt.answer)
        assert KnightsReward()(question).correct == KnightsOfficial()(question).correct == 1


def test_it_reads_like_the_published_puzzles(made):
    text = made[0].prompt[0]["content"]
    names = made[0].extra["names"]
    assert re.match(r"A very special island .* You meet 2 inhabitants: (\w+), and (\w+)\. .* So who is a knight", text)
    assert made[0].answer.startswith(f"{names[0]} is a kn")
    assert made[0].answer.endswith(".")


@pytest.mark.parametrize(
    ("statement", "words", "true_for"),
    [
        (("telling-truth", 0), "Al is a knight", {(1, 1), (1, 0)}),
        (("lying", 1), "Bo is a knave", {(1, 0), (0, 0)}),
        (("not", ("lying", 1)), "Bo is not a knave", {(1, 1), (0, 1)}),
        (("and", ("lying", 0), ("lying", 1)), "Al is a knave and Bo is a knave", {(0, 0)}),
        (("or", ("lying", 0), ("lying", 1)), "Al is a knave or Bo is a knave", {(0, 0), (0, 1), (1, 0)}),
        (("->", ("lying", 0), ("lying", 1)), "If Al is a knave then Bo is a knave", {(0, 0), (1, 0), (1, 1)}),
        (("<=>", ("lying", 0), ("lying", 1)), "Al is a knave if and only if Bo is a knave", {(0, 0), (1, 1)}),
    ],
)
def test_statements_mean_what_they_say(statement, words, true_for):
    assert claim(statement, ("Al", "Bo")) == words
    assert {roles for roles in itertools.product((0, 1), repeat=2) if holds(statement, roles)} == true_for


def test_a_classic_is_solved():
    assert solve([("and", ("lying", 0), ("lying", 1)), ("telling-truth", 1)]) == [(False, True)]


def test_more_at_least_than_at_most_is_refused():
    with pytest.raises(ValueError, match=r"fewest \(5\) is more than most \(3\)"):
        next(Knights(fewest=5, most=3).prompts(1, seed=0))
