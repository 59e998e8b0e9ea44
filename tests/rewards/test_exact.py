from megatron_rl.answers import Question
from megatron_rl.rewards.exact import Exact


def score(reward, response, answer="5 6", **more):
    return reward(Question(response=response, answer=answer, **more))


def test_the_whole_response_counts_where_no_marker_is_asked_for():
    assert score(Exact(), " 5  6\n").correct == 1
    assert score(Exact(), "it is 5 6").correct == 0


def test_what_follows_the_last_marker_counts():
    reward = Exact(after="<answer>")
    assert score(reward, "a 4 7 <answer> 1 <answer> 5 6").correct == 1
    assert score(reward, "<answer> 5 6 7").correct == 0
    assert score(reward, "5 6").extracted is None


def test_a_response_that_was_cut_off_is_wrong_where_it_must_finish():
    assert score(Exact(finished=True), "5 6", finish="stop").correct == 1
    assert score(Exact(finished=True), "5 6", finish="length").correct == 0
    assert score(Exact(), "5 6", finish="length").correct == 1


def test_case_counts_unless_ignored():
    assert score(Exact(), "B", "b").correct == 0
    assert score(Exact(ignore_case=True), "B", "b").correct == 1
