"""Weights that change while batches are written: how old a token may be, and that saves and evaluations find peace."""

import threading
import time
from contextlib import contextmanager

import pytest
import torch

from megatron_rl.ahead import AHEAD, Ahead
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import SAMPLER_LOGPROBS, TOKEN_VERSIONS, VERSION
from megatron_rl.in_flight import InFlight
from megatron_rl.loop import resume, train
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.schedule import Schedule
from tests.fakes.faulty_engine import LosesSome
from tests.fakes.tabular import TabularEngine, TabularSync, score_table
from tests.test_ahead import UNFILTERED, Breaks, unfiltered
from tests.test_loop import PROMPTS, make_run

PATIENCE_S = 20.0
"""How long something that must happen is waited for."""


class TakesWeights(TabularEngine):
    """Writes three rollouts after the other, by the weights of then, and remembers the law of every version."""

    def __init__(self) -> None:
        super().__init__(PROMPTS)
        self.laws, self.changing, self.is_busy = {}, threading.Lock(), False

    def generate(self, batch, sampling=None):
        with self.at_work():
            return Batch.concat([self.some(batch.take(part), sampling) for part in torch.arange(len(batch)).split(3)])

    def some(self, batch, sampling):
        time.sleep(0.002)
        with self.changing:
            return super().generate(batch, sampling)

    @contextmanager
    def at_work(self):
        self.is_busy = True
        yield
        self.is_busy = False


class Sync(TabularSync):
    def publish(self, version):
        with self.engine.changing:
            self.engine.laws[version] = None
            super().publish(version)
            self.engine.laws[version] = self.engine.law
        return version


def in_flight_run(folder, steps, by, engine=None, **changes):
    whole = {"sampler": Uniform(prompts=3, samples=4), "collect": UNFILTERED}  # every wave is a whole batch
    run, engine = make_run(folder, steps, feed=InFlight(by), **whole, **changes), engine or TakesWeights()
    run.machines, run.weights = {**run.machines, "engine": engine}, Sync(run.actor, engine)
    return run


def lags(run, first=0):
    """How many versions each token was behind the weights that learnt from it, step by step."""
    batches = enumerate(run.telemetry.batches, start=first)
    return [(step - batch.ragged(TOKEN_VERSIONS).values).tolist() for step, batch in batches]


@pytest.mark.parametrize("by", [1, 2, 3])
def test_a_token_is_never_older_than_the_steps_ahead_nor_newer_than_the_weights_that_learn_from_it(tmp_path, by):
    run = in_flight_run(tmp_path, 7, by)
    train(run)
    assert {lag for step in lags(run) for lag in step} <= set(range(by + 1))
    told = [record.metrics for record in run.telemetry.records]
    assert [each["in_flight/lag_max"] for each in told] == [max(step) for step in lags(run)]
    assert all(each["in_flight/spanning_share"] == each["in_flight/versions_max"] == 0 for each in told)


class WaitsForWeights(TakesWeights):
    """Is half way through every batch but the first when weights come."""

    waves = 0

    def __init__(self) -> None:
        super().__init__()
        self.is_half_way = threading.Event()

    def generate(self, batch, sampling=None):
        self.waves += 1
        half = super().generate(batch.take(torch.arange(6)), sampling)
        ends = time.monotonic() + PATIENCE_S
        if self.waves > 1:
            self.is_half_way.set()
        while self.waves > 1 and self.version < self.waves - 1:
            assert time.monotonic() < ends, "no weights came"
            time.sleep(0.001)
        return Batch.concat([half, super().generate(batch.take(torch.arange(6, len(batch))), sampling)])


def test_nobody_waits_for_a_batch_before_weights_change_and_every_token_is_its_version_s(tmp_path):
    run = in_flight_run(tmp_path, 5, by=1, engine=WaitsForWeights(), schedule=Schedule(steps=5))
    engine, update = run.machines["engine"], run.actor.update

    def late(batch, objective):
        assert engine.is_half_way.wait(PATIENCE_S)
        engine.is_half_way.clear()
        return update(batch, objective)

    run.actor.update = late
    train(run)
    assert lags(run) == [[0] * 12, *[[1] * 6 + [0] * 6] * 4]
    for batch in run.telemetry.batches:
        for row, version in enumerate(batch[VERSION].tolist()):
            one = batch.take(torch.tensor([row]))
            assert one.ragged(SAMPLER_LOGPROBS).values == score_table(engine.laws[version], one).values


def test_an_evaluation_and_a_save_find_the_engine_at_rest_and_every_memory_whole(tmp_path):
    run, seen = in_flight_run(tmp_path, 8, by=2), []
    engine, evaluate, begin = run.machines["engine"], run.evaluator.evaluate, run.saver.begin

    def at_rest(act):
        def acts(*given):
            seen.append((run.step, engine.is_busy, len(run.memories.get(AHEAD, {"batches": []})["batches"])))
            return act(*given)

        return acts

    run.evaluator.evaluate, run.saver.begin = at_rest(evaluate), at_rest(begin)
    train(run)
    assert [step for step, _, _ in seen] == [0, 3, 4, 6, 8, 8]
    assert {(is_busy, waiting) for step, is_busy, waiting in seen if step} == {(False, 2)}


@pytest.mark.parametrize("by", [1, 3])
def test_a_run_is_taken_up_where_it_was_saved(tmp_path, by):
    train(in_flight_run(tmp_path, 3, by))
    second = in_flight_run(tmp_path, 8, by)
    assert resume(second)
    assert len(second.memories[AHEAD]["batches"]) == by
    train(second)
    assert {lag for step in lags(second, first=3) for lag in step} <= set(range(by + 1))
    counts, waiting = second.memories["buffer"], second.memories[AHEAD]["batches"]
    assert counts["pushed"] == counts["yielded"] == 12 * (8 + by)
    assert len(waiting) == by


def test_training_raises_the_share_of_right_answers(tmp_path):
    run = in_flight_run(tmp_path, 12, by=2)
    train(run)
    shares = [evaluation.metrics["table/pass@1"] for evaluation in run.telemetry.evaluations]
    assert shares[-1] > shares[0] + 0.15


@pytest.mark.parametrize("by", [1, 3])
def test_a_rollout_that_failed_beside_is_told_once(tmp_path, by):
    run = in_flight_run(tmp_path, 5, by)
    run.machines = {**run.machines, "engine": LosesSome(run.machines["engine"], 0.3)}
    train(run)
    told = sum(record.metrics.get("failed/rollouts", 0) for record in run.telemetry.records)
    untold = run.memories["failed"]["rows"]
    assert told + (len(untold) if untold is not None else 0) == run.memories["failed"]["rollouts"] > 0


class BreaksInFlight(Breaks, TakesWeights):
    def __init__(self) -> None:
        TakesWeights.__init__(self)


def test_what_goes_wrong_beside_ends_the_run_with_its_own_traceback(tmp_path):
    run = in_flight_run(tmp_path, 8, by=2, engine=BreaksInFlight())
    with pytest.raises(ConnectionResetError, match="the engine is gone"):
        train(run)
    run.feed.close()
    assert "collect" not in [thread.name for thread in threading.enumerate()]


class Mortal(TabularEngine):
    """Loses its weights in the middle of its third wave, whose other half waits for what is published next."""

    waves, is_left_behind, awaits_weights = 0, False, False

    def leave_behind(self, is_left_behind=True):
        self.is_left_behind = is_left_behind

    def generate(self, batch, sampling=None):
        self.waves += 1
        if self.waves != 3:
            return super().generate(batch, sampling)
        assert self.is_left_behind
        half = super().generate(batch.take(torch.arange(6)), sampling)
        self.awaits_weights, ends = True, time.monotonic() + PATIENCE_S
        while self.awaits_weights:
            assert time.monotonic() < ends, "no weights came"
            time.sleep(0.001)
        return Batch.concat([half, super().generate(batch.take(torch.arange(6, len(batch))), sampling)])


@pytest.mark.parametrize("feed", [Ahead, InFlight])
def test_an_engine_that_lost_its_weights_goes_on_with_those_that_the_actor_has_by_then(tmp_path, capfd, feed):
    run, engine, published = unfiltered(tmp_path, 5, by=1), Mortal(PROMPTS), []

    class Sync(TabularSync):
        def publish(self, version):
            published.append(version)
            told = super().publish(version)
            engine.awaits_weights = False
            return told

    run.machines, run.weights, run.feed = {**run.machines, "engine": engine}, Sync(run.actor, engine), feed(1, engine)
    evaluate, seen = run.evaluator.evaluate, []
    run.evaluator.evaluate = lambda step: seen.append(engine.is_left_behind) or evaluate(step)
    train(run)
    batches = [batch.ragged(TOKEN_VERSIONS).values.tolist() for batch in run.telemetry.batches]
    assert batches[2] in ([1] * 6 + [2] * 6, [1] * 12, [2] * 12)
    assert run.step == 5
    assert sorted(set(published)) == [0, 1, 2, 3, 4, 5]
    assert seen == [False] * 2
    if feed is Ahead:
        assert published == [0, 1, 2, 2, 3, 4, 5]
        assert "what it wrote goes on with version 2" in capfd.readouterr().err
