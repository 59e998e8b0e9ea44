import random
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from megatron_rl import checkpoint, loop
from megatron_rl.budget import Budget
from megatron_rl.schedule import Schedule
from tests.test_loop import make_run


def budget(left_s, **more):
    return Budget(ends_at=time.time() + left_s, **more)


def test_a_step_and_its_save_must_fit_with_room_to_spare():
    assert not budget(1000, margin_s=10).is_spent()
    assert budget(1000, margin_s=10, step_s=500, save_s=200).is_spent()
    assert budget(5, margin_s=10).is_spent()


def test_a_checkpoint_on_its_way_must_fit_too():
    job = budget(1000, margin_s=10, step_s=200, save_s=250)
    assert not job.is_spent()
    assert job.is_spent(saving_s=1)
    assert budget(1000, margin_s=10, step_s=200, save_s=1).is_spent(saving_s=250)


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
    while not job.is_spent():
        seconds = {"collect": step * chance.uniform(0.7, 1.0)}
        if job.needs_save:
            seconds["save"] = save * chance.uniform(0.7, 1.0)
        clock.now += sum(seconds.values())
        job.learn(seconds)
        steps += 1
    assert steps > 1
    assert clock.now + save <= 600 - job.margin_s


def taking(clock: Clock, chance: random.Random, longest: float, does: Callable[..., object]) -> Callable[..., object]:
    """The same, at the end of up to so many seconds."""

    def slowly(*arguments: object) -> object:
        result = does(*arguments)
        clock.now += longest * chance.uniform(0.7, 1.0)
        return result

    return slowly


SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_whose_setup_ate_a_third_of_its_job_saves_before_the_job_is_killed(tmp_path, monkeypatch, seed):
    chance, clock = random.Random(seed), Clock(0.3 * 600)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=clock))
    run = make_run(tmp_path, steps=10_000, schedule=Schedule(steps=10_000), evaluator=None)
    run.budget = Budget(ends_at=600.0, now=clock)
    run.actor.update = taking(clock, chance, chance.uniform(20, 60), run.actor.update)
    run.actor.save = taking(clock, chance, chance.uniform(1, 60), run.actor.save)
    loop.train(run)
    assert (run.stopping, run.saved_step) == ("out of time", run.step)
    assert checkpoint.verify(checkpoint.latest(tmp_path / "checkpoints")).step == run.step > 1
    assert clock.now <= 600 - run.budget.margin_s
