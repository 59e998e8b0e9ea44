import pytest

from tools.bench_ahead import line, row, verdict


def told(collect, hidden):
    seconds = {"seconds/collect": collect, "seconds/learn": 0.5, "seconds/update": 1.5, "seconds/publish": 0.25}
    return {**seconds, "ahead/hidden_seconds": hidden, "buffer/age_max": 1.0}


def test_a_step_is_what_the_learner_did_and_hidden_seconds_are_beside_it():
    told_once = row([told(1.0, 0.0), told(0.5, 1.0)])
    assert told_once["stood still"] == pytest.approx(0.75)
    assert told_once["step"] == pytest.approx(3.0)
    assert told_once["hidden"] == pytest.approx(0.5)


def test_ways_are_compared_with_the_first_over_all_rounds():
    slow, fast = row([told(1.75, 0.0)]), row([told(0.0, 1.75)])
    assert line(1, fast).split() == ["1", "2.250", "0.000", "2.000", "0.250", "1.750", "1.000"]
    first, second = verdict([(0, slow), (1, fast), (0, slow), (1, fast)]).splitlines()
    assert first == "ahead 0: 4.000 s a step, 1.00 of ahead 0"
    assert second == "ahead 1: 2.250 s a step, 0.56 of ahead 0"
