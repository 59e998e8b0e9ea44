import random
import time

import pytest

from megatron_rl.budget import Budget


def budget(left_s, **more):
    return Budget(ends_at=time.time() + left_s, **more)


def test_a_step_and_its_save_must_fit_with_room_to_spare():
    assert not budget(1000, margin_s=10).is_spent
    assert budget(1000, margin_s=10, step_s=500, save_s=200).is_spent
    assert budget(5, margin_s=10).is_spent


def test_the_longest_step_and_save_count():
    spent = budget(1000)
    spent.learn({"collect": 30.0, "update": 10.0, "save": 5.0})
    spent.learn({"collect": 10.0})
    assert (spent.step_s, spent.save_s) == (40.0, 5.0)


def test_the_first_save_is_wanted_at_once():
    fresh = budget(1000)
    fresh.learn({"collect": 1.0})
    assert fresh.needs_save
    fresh.learn({"collect": 1.0, "save": 2.0})
    assert not fresh.needs_save


class Clock:
    """A day's seconds, moved by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", range(20))
def test_the_last_save_lands_in_time_whatever_the_setup_took(seed):
    chance, clock = random.Random(seed), Clock(0.3 * 600)
    step, save = chance.uniform(1, 60), chance.uniform(1, 30)
    job, steps = Budget(ends_at=600.0, now=clock), 0
    while not job.is_spent:
        seconds = {"collect": step * chance.uniform(0.7, 1.0)}
        if job.needs_save:
            seconds["save"] = save * chance.uniform(0.7, 1.0)
        clock.now += sum(seconds.values())
        job.learn(seconds)
        steps += 1
    assert steps > 1
    assert clock.now + save <= 600 - job.margin_s
