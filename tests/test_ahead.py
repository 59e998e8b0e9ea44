"""Collecting ahead: which weights write what, that stops change nothing, and that nobody is disturbed at work."""

import threading
import time

import pytest
import torch

from megatron_rl.ahead import AHEAD, AbandonedError, Ahead
from megatron_rl.batch.columns import SEED, TOKEN_VERSIONS, VERSION
from megatron_rl.checkpoint import CheckpointError
from megatron_rl.loop import resume, train
from megatron_rl.pipeline import chain
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.schedule import Schedule
from megatron_rl.stages.advantage import Advantage
from megatron_rl.stages.generate import Generate
from megatron_rl.stages.judge import Judge
from megatron_rl.stages.smoothed_stats import SmoothedStats
from tests.fakes.faulty_engine import LosesSome
from tests.fakes.tabular import TabularEngine, TabularSync
from tests.test_loop import PROMPTS, make_run, same_training

PATIENCE_S = 20.0
"""How long something that must happen is waited for."""
UNFILTERED = chain([("generate", Generate()), ("judge", Judge())])


def ahead_run(folder, steps, by, **changes):
    return make_run(folder, steps, feed=Ahead(by), **changes)


def unfiltered(folder, steps, by, **changes):
    """Every wave is a whole batch, so that nothing waits but for the schedule."""
    return ahead_run(folder, steps, by, sampler=Uniform(prompts=3, samples=4), collect=UNFILTERED, **changes)


@pytest.mark.parametrize("by", [1, 2, 3])
def test_a_batch_is_written_by_the_version_that_its_step_names_and_by_no_other(tmp_path, by):
    run = unfiltered(tmp_path, 8, by)
    train(run)
    for step, batch in enumerate(run.telemetry.batches):
        assert set(batch[VERSION].tolist()) == {max(0, step - by)}
        assert set(batch.ragged(TOKEN_VERSIONS).values.tolist()) == {max(0, step - by)}
    ages = [record.metrics["buffer/age_max"] for record in run.telemetry.records]
    assert ages == [min(step, by) for step in range(8)]


@pytest.mark.parametrize("by", [1, 3])
def test_training_raises_the_share_of_right_answers_from_older_rollouts_too(tmp_path, by):
    run = ahead_run(tmp_path, 12, by)
    train(run)
    shares = [evaluation.metrics["table/pass@1"] for evaluation in run.telemetry.evaluations]
    assert [evaluation.step for evaluation in run.telemetry.evaluations] == [0, 4, 8, 12]
    assert shares[-1] > shares[0] + 0.15


def test_none_ahead_is_the_run_that_takes_turns(tmp_path):
    in_turn, ahead = make_run(tmp_path / "in_turn", steps=8), ahead_run(tmp_path / "ahead", 8, by=0)
    train(in_turn)
    train(ahead)
    ahead.memories = {slot: memory for slot, memory in ahead.memories.items() if slot != AHEAD}
    same_training(in_turn, ahead, steps=8)


@pytest.mark.parametrize("by", [1, 3])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stop_save_and_resume_equals_never_having_stopped(tmp_path, by, stop):
    straight = ahead_run(tmp_path / "straight", 8, by)
    train(straight)
    train(ahead_run(tmp_path / "broken", stop, by))
    second = ahead_run(tmp_path / "broken", 8, by)
    assert resume(second)
    assert len(second.memories[AHEAD]["batches"]) == by
    train(second)
    same_training(straight, second, steps=8 - stop)
    ours, theirs = (run.telemetry.batches[-1].metrics for run in (straight, second))
    assert ours == theirs


class WaitsForTheActor(TabularEngine):
    """From the second wave on, writes nothing before the actor has begun to learn from the first."""

    def __init__(self, learning: threading.Event) -> None:
        super().__init__(PROMPTS)
        self.learning, self.waves = learning, 0

    def generate(self, batch, sampling=None):
        self.waves += 1
        assert self.waves == 1 or self.learning.wait(PATIENCE_S)
        return super().generate(batch, sampling)


def test_the_engine_writes_while_the_actor_learns(tmp_path):
    learning, run = threading.Event(), unfiltered(tmp_path, 1, by=1)
    engine = WaitsForTheActor(learning)
    run.machines, run.weights = {**run.machines, "engine": engine}, TabularSync(run.actor, engine)
    update = run.actor.update
    run.actor.update = lambda batch, objective: learning.set() or update(batch, objective)
    train(run)
    assert engine.waves == 2
    told = run.telemetry.records[0].metrics
    assert told["ahead/waiting"] == 1
    assert 0 <= told["ahead/hidden_seconds"] <= told["ahead/collect_seconds"]


class Busy(TabularEngine):
    """Says whether it is writing, and takes its time in an irregular way."""

    is_busy = False

    def generate(self, batch, sampling=None):
        self.is_busy = True
        time.sleep(0.001 * (int(batch[SEED].sum()) % 5))
        told = super().generate(batch, sampling)
        self.is_busy = False
        return told


def test_weights_change_only_while_nobody_writes_whoever_is_the_slower(tmp_path):
    plain = ahead_run(tmp_path / "plain", 6, by=1)
    train(plain)
    run, engine = ahead_run(tmp_path / "uneven", 6, by=1), Busy(PROMPTS)

    class Sync(TabularSync):
        def publish(self, version):
            assert not engine.is_busy
            return super().publish(version)

    run.machines, run.weights = {**run.machines, "engine": engine}, Sync(run.actor, engine)
    update = run.actor.update
    run.actor.update = lambda batch, objective: time.sleep(0.002 * (run.step % 3)) or update(batch, objective)
    train(run)
    same_training(plain, run, steps=6)


def test_each_side_moves_its_own_memory(tmp_path):
    learn = chain([("smoothed_stats", SmoothedStats()), ("advantage", Advantage())])
    straight = unfiltered(tmp_path / "straight", 6, by=2, learn=learn)
    train(straight)
    assert set(straight.memories) == {"uniform", "buffer", "smoothed_stats", AHEAD}
    train(unfiltered(tmp_path / "broken", 4, by=2, learn=learn))
    second = unfiltered(tmp_path / "broken", 6, by=2, learn=learn)
    assert resume(second)
    train(second)
    same_training(straight, second, steps=2)


def test_rollouts_are_accounted_for(tmp_path):
    run = ahead_run(tmp_path, 6, by=2)
    train(run)
    counts, waiting = run.memories["buffer"], run.memories[AHEAD]["batches"]
    held = 0 if counts["waiting"] is None else len(counts["waiting"])
    assert counts["pushed"] == counts["yielded"] + counts["filtered"] + counts["stale"] + held
    assert counts["yielded"] == sum(len(batch) for batch in (*run.telemetry.batches, *waiting))


class Breaks(TabularEngine):
    """Fails at its third wave."""

    waves = 0

    def generate(self, batch, sampling=None):
        self.waves += 1
        if self.waves == 3:
            raise ConnectionResetError("the engine is gone")
        return super().generate(batch, sampling)


def test_what_goes_wrong_beside_ends_the_run_with_its_own_traceback(tmp_path):
    run, engine = unfiltered(tmp_path, 8, by=1), Breaks(PROMPTS)
    run.machines, run.weights = {**run.machines, "engine": engine}, TabularSync(run.actor, engine)
    with pytest.raises(ConnectionResetError, match="the engine is gone") as caught:
        train(run)
    assert "The engine was writing 12 rollouts" in caught.value.__notes__[0]
    assert "generate" in [entry.name for entry in caught.traceback]
    assert run.step == 1


class WritesNothing(Breaks):
    """Of its third wave."""

    def generate(self, batch, sampling=None):
        try:
            return super().generate(batch, sampling)
        except ConnectionResetError:
            return super().generate(batch, sampling).take(torch.arange(0))


def test_a_batch_without_a_single_rollout_ends_the_run(tmp_path):
    run, engine = unfiltered(tmp_path, 8, by=1), WritesNothing(PROMPTS)
    run.machines, run.weights = {**run.machines, "engine": engine}, TabularSync(run.actor, engine)
    with pytest.raises(RuntimeError, match=r"step 2: none of the rollouts of 3 groups .*was not given back"):
        train(run)


def test_stopping_changes_nothing_where_rollouts_failed_beside(tmp_path):
    def losing(folder, steps):
        run = ahead_run(folder, steps, by=1)
        run.machines = {**run.machines, "engine": LosesSome(run.machines["engine"], 0.6)}
        return run

    straight = losing(tmp_path / "straight", 8)
    train(straight)
    train(losing(tmp_path / "broken", 3))
    second = losing(tmp_path / "broken", 8)
    assert resume(second)
    train(second)
    same_training(straight, second, steps=5)
    told = sum(record.metrics["failed/rollouts"] for record in straight.telemetry.records)
    assert told == straight.memories["failed"]["rollouts"] > 0


def test_a_stage_that_asks_the_actor_while_it_learns_is_told_that_there_is_none(tmp_path):
    class Asks(Judge):
        def __call__(self, batch, memory, context):
            context.actor.score(batch)
            return super().__call__(batch, memory, context)

    run = unfiltered(tmp_path, 2, by=1)
    run.collect = chain([("generate", Generate()), ("judge", Asks())])
    with pytest.raises(LookupError, match="this step has no actor"):
        train(run)


class NeverDone(TabularEngine):
    """From the second wave on writes for ever, telling its progress."""

    waves = 0

    def generate(self, batch, sampling=None):
        self.waves += 1
        if self.waves == 1:
            return super().generate(batch, sampling)
        while True:
            self.progress(0, len(batch), 0)
            time.sleep(0.001)


def test_a_run_that_fails_does_not_wait_for_rollouts_that_nobody_wants(tmp_path):
    run, engine = unfiltered(tmp_path, 2, by=1), NeverDone(PROMPTS)
    engine.progress = run.feed.watched(run.telemetry.wave)
    run.machines, run.weights = {**run.machines, "engine": engine}, TabularSync(run.actor, engine)

    def fails(batch, objective):
        raise RuntimeError("no update")

    run.actor.update = fails
    with pytest.raises(RuntimeError, match="no update"):
        train(run)
    run.feed.close()
    assert "collect" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(AbandonedError):
        run.feed.rest(run)


def test_a_memory_that_is_none_of_its_own_is_refused(tmp_path):
    run = unfiltered(tmp_path, 2, by=1)
    run.memories = {AHEAD: {"batches": [torch.zeros(1)]}}
    with pytest.raises(TypeError, match="a list of batches"):
        train(run)


def test_a_run_that_ends_early_by_request_saves_what_was_collected(tmp_path):
    run = unfiltered(tmp_path, 8, by=1, schedule=Schedule(steps=8))
    update = run.actor.update

    def stops(batch, objective):
        run.stopping = "stopped by SIGTERM"
        return update(batch, objective)

    run.actor.update = stops
    train(run)
    again = unfiltered(tmp_path, 8, by=1)
    assert resume(again)
    assert again.step == 1
    assert len(again.memories[AHEAD]["batches"]) == 1


def test_a_run_goes_on_with_the_prompts_that_it_has_counted_where_it_knows_them(tmp_path):
    known, others = {"prompts": "7 prompts"}, {"prompts": "3 prompts"}
    train(ahead_run(tmp_path, 2, by=1))
    assert resume(ahead_run(tmp_path, 4, by=1, facts=others))
    train(ahead_run(tmp_path / "known", 2, by=1, facts=known))
    with pytest.raises(CheckpointError, match=r"on with 7 prompts, but data\.train has 3 prompts by now; put"):
        resume(ahead_run(tmp_path / "known", 4, by=1, facts=others))
