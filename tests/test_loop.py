import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_rl import checkpoint
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, CORRECT, ERROR, GROUP, PROMPT_ID, REWARD, STATUS, VERSION
from megatron_rl.budget import Budget
from megatron_rl.buffer import GroupBuffer
from megatron_rl.loop import InTurn, Run, resume, train
from megatron_rl.pipeline import chain
from megatron_rl.ports import Evaluation, NotFinite, Update
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.schedule import Schedule
from megatron_rl.stages.advantage import Advantage
from megatron_rl.stages.generate import Generate
from megatron_rl.stages.judge import Judge
from megatron_rl.stages.leave_one_out_baseline import LeaveOneOutBaseline
from tests.fakes.faulty_engine import FAULTS, FaultyEngine, LosesSome, dies
from tests.fakes.tabular import FirstAnswerIsRight, NumberedPrompts, Recorder, TabularActor, TabularEngine, TabularSync

PROMPTS = 7


@dataclass(frozen=True, kw_only=True)
class KeepMixed:
    """Drops groups that agree and remembers how many it has dropped."""

    reads = (CORRECT, GROUP)
    writes = ()

    def __call__(self, batch: Batch, memory, context):
        group_B = batch.group_index()
        right_G = torch.bincount(group_B, weights=batch[CORRECT].double())
        mixed_G = (right_G > 0) & (right_G < torch.bincount(group_B))
        dropped = (memory or {"dropped": 0})["dropped"] + int((~mixed_G).sum())
        return batch.with_columns(kept=mixed_G[group_B].to(torch.uint8)), {"dropped": dropped}


class MeanRight:
    def __init__(self, actor: TabularActor) -> None:
        self.actor = actor

    def evaluate(self, step: int) -> Evaluation:
        return Evaluation(step=step, metrics={"table/pass@1": float(self.actor._law()[:, 0].mean())})


def make_run(folder: Path, steps: int, **changes) -> Run:
    actor, engine = changes.pop("actor", None) or TabularActor(PROMPTS), TabularEngine(PROMPTS)
    sampler = Uniform(prompts=3, samples=4, wave=4)
    parts = {
        "folder": folder,
        "seed": 5,
        "schedule": Schedule(steps=steps, save_every=3, evaluate_every=4),
        "sampler": sampler,
        "collect": chain([("generate", Generate()), ("judge", Judge()), ("keep_mixed", KeepMixed())]),
        "learn": chain([("leave_one_out_baseline", LeaveOneOutBaseline()), ("advantage", Advantage())]),
        "objective": None,
        "buffer": GroupBuffer(prompts=sampler.prompts),
        "actor": actor,
        "weights": TabularSync(actor, engine),
        "machines": {
            "engine": engine,
            "actor": actor,
            "judge": FirstAnswerIsRight(),
            "prompts": NumberedPrompts(PROMPTS),
        },
        "telemetry": Recorder(),
        "evaluator": MeanRight(actor),
    }
    return Run(**(parts | changes))


def same_training(run: Run, other: Run, steps: int) -> None:
    np.testing.assert_array_equal(run.actor.logits, other.actor.logits)
    np.testing.assert_array_equal(run.actor.momentum, other.actor.momentum)
    assert run.memories == other.memories
    for ours, theirs in zip(run.telemetry.batches[-steps:], other.telemetry.batches[-steps:], strict=True):
        assert ours == theirs


def test_training_raises_the_share_of_right_answers(tmp_path):
    run = make_run(tmp_path, steps=12)
    train(run)
    shares = [evaluation.metrics["table/pass@1"] for evaluation in run.telemetry.evaluations]
    assert [evaluation.step for evaluation in run.telemetry.evaluations] == [0, 4, 8, 12]
    assert shares[-1] > shares[0] + 0.2


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stop_save_and_resume_equals_never_having_stopped(tmp_path, stop):
    straight = make_run(tmp_path / "straight", steps=8)
    train(straight)
    first = make_run(tmp_path / "broken", steps=stop)
    train(first)
    second = make_run(tmp_path / "broken", steps=8)
    assert resume(second)
    assert second.step == stop
    train(second)
    same_training(straight, second, steps=8 - stop)


def test_an_engine_that_drops_its_weights_while_the_actor_learns_changes_nothing(tmp_path):
    awake, sleeping = make_run(tmp_path / "awake", steps=6), make_run(tmp_path / "sleeping", steps=6)
    sleeping.feed = InTurn(dismiss=sleeping.machines["engine"].close)
    train(awake)
    train(sleeping)
    same_training(awake, sleeping, steps=6)
    assert all("collect/sleep" in record.parts for record in sleeping.telemetry.records)


def test_a_step_says_where_its_seconds_went(tmp_path):
    run = make_run(tmp_path, steps=2)
    train(run)
    for record in run.telemetry.records:
        collected = {"collect/sampler", "collect/generate", "collect/judge", "collect/keep_mixed", "collect/buffer"}
        learnt = {"learn/leave_one_out_baseline", "learn/advantage"}
        assert set(record.parts) == collected | learnt
        assert sum(record.parts[name] for name in collected) <= record.seconds["collect"]
        assert sum(record.parts[name] for name in learnt) <= record.seconds["learn"]


def test_a_run_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    run = make_run(tmp_path, steps=2)
    assert not resume(run)
    assert run.step == 0


def test_a_request_to_stop_ends_after_the_step_in_hand_and_saves(tmp_path):
    run = make_run(tmp_path, steps=8)

    class StopsAtTwo(Recorder):
        def step(self, record, batch):
            super().step(record, batch)
            run.stopping = "time is nearly up" if record.step == 2 else ""

    run.telemetry = StopsAtTwo()
    train(run)
    again = make_run(tmp_path, steps=8)
    assert resume(again)
    assert again.step == 2


def test_a_job_that_will_be_killed_saves_at_once_and_stops_while_a_save_still_fits(tmp_path):
    run = make_run(tmp_path, steps=8, schedule=Schedule(steps=8), budget=Budget(ends_at=time.time() + 1000))

    class TakesHalfOfTheTime(Recorder):
        def step(self, record, batch):
            super().step(record, batch)
            assert record.step == 1 or checkpoint.latest(tmp_path / "checkpoints").name == "step_000001"
            run.seconds["update"] += 400 if record.step == 2 else 0

    run.telemetry = TakesHalfOfTheTime()
    run.budget.margin_s = 400
    train(run)
    assert run.stopping == "out of time"
    again = make_run(tmp_path, steps=8)
    assert resume(again)
    assert again.step == 2


def test_a_batch_is_whole_groups_of_the_policy_that_was_published(tmp_path):
    run = make_run(tmp_path, steps=6)
    train(run)
    for batch in run.telemetry.batches:
        assert torch.bincount(batch.group_index()).tolist() == [4, 4, 4]
        assert all(len(set(group[PROMPT_ID])) == 1 for group in batch.groups())
    assert int(run.telemetry.batches[0][VERSION].max()) == 0


def test_rollouts_are_accounted_for(tmp_path):
    run = make_run(tmp_path, steps=6)
    train(run)
    counts = run.memories["buffer"]
    waiting = 0 if counts["waiting"] is None else len(counts["waiting"])
    assert counts["pushed"] == counts["yielded"] + counts["filtered"] + counts["stale"] + waiting
    assert counts["yielded"] == sum(len(batch) for batch in run.telemetry.batches)


def test_advantages_are_the_rewards_above_the_other_rollouts(tmp_path):
    run = make_run(tmp_path, steps=1)
    train(run)
    for group in run.telemetry.batches[0].groups():
        reward_B = group[REWARD]
        others_B = (reward_B.sum() - reward_B) / (len(reward_B) - 1)
        torch.testing.assert_close(group[ADVANTAGE].values.double(), reward_B - others_B, atol=1e-6, rtol=0)


def test_a_filter_that_drops_everything_ends_the_run_with_the_reason(tmp_path):
    class NeverRight(FirstAnswerIsRight):
        def judge(self, batch):
            return super().judge(batch).with_columns(correct=[0] * len(batch))

    run = make_run(tmp_path, steps=2, schedule=Schedule(steps=2, max_waves=5))
    run.machines["judge"] = NeverRight()
    with pytest.raises(RuntimeError, match="5 waves in a row did not fill a batch of 3 groups"):
        train(run)


def test_the_rows_of_a_skipped_step_are_written_out(tmp_path):
    class NeverFinite(TabularActor):
        def update(self, batch, objective):
            return Update(metrics={}, steps=0, skipped=1, offending=batch.take(torch.tensor([0])))

    run = make_run(tmp_path, steps=2, actor=NeverFinite(PROMPTS))
    train(run)
    assert len(Batch.read_parquet(tmp_path / "offending" / "step_000001.parquet")) == 1


def test_the_rows_over_which_the_actor_gives_up_are_written_out_before_the_run_ends(tmp_path):
    class GivesUp(TabularActor):
        def update(self, batch, objective):
            raise NotFinite(3, "a loss that is not finite", batch.take(torch.tensor([0, 1])))

    run = make_run(tmp_path, steps=2, actor=GivesUp(PROMPTS))
    with pytest.raises(NotFinite, match="3 optimizer steps in a row"):
        train(run)
    assert len(Batch.read_parquet(tmp_path / "offending" / "step_000001.parquet")) == 2


def test_phases_are_timed_and_a_save_is_told_by_the_step_after_it(tmp_path):
    run = make_run(tmp_path, steps=8)
    train(run)
    phases = [record.seconds.keys() - {"collect", "learn", "update", "publish"} for record in run.telemetry.records]
    assert phases == [set(), set(), set(), {"evaluate", "save"}, set(), set(), {"save"}, {"evaluate"}]
    assert all({"collect", "learn", "update", "publish"} <= record.seconds.keys() for record in run.telemetry.records)


def test_requested_is_scored_and_failed_whatever_an_engine_does_to_rollouts(tmp_path):
    run = make_run(tmp_path, steps=8)
    engine = FaultyEngine(run.machines["engine"], dict(enumerate(fault for fault, _, _ in FAULTS.values())))
    run.machines = {**run.machines, "engine": engine}
    train(run)
    told = [record.metrics for record in run.telemetry.records]
    assert all(each["rollout/requested"] == each["rollout/scored"] + each["rollout/failed"] for each in told)
    assert sum(each["rollout/failed"] for each in told) > 0
    failed = run.memories["failed"]["rollouts"]
    assert run.memories["buffer"]["pushed"] + failed == 16 * engine.calls
    assert failed == told[-1]["failed/total"] == sum(each.get("failed/rollouts", 0) for each in told)


def losing_run(folder: Path, steps: int, share: float = 0.6, **changes) -> Run:
    """A share of the rollouts never comes back, and now and then all four of a group."""
    run = make_run(folder, steps, **changes)
    run.machines = {**run.machines, "engine": LosesSome(run.machines["engine"], share)}
    return run


def test_nothing_is_learnt_from_rollouts_that_failed_and_all_of_them_are_shown(tmp_path):
    run, learnt = losing_run(tmp_path, steps=6), []
    update = run.actor.update
    run.actor.update = lambda batch, objective: learnt.append(batch) or update(batch, objective)
    train(run)
    assert sum(record.metrics["failed/groups"] for record in run.telemetry.records) > 0
    for batch, shown, record in zip(learnt, run.telemetry.batches, run.telemetry.records, strict=True):
        assert set(batch[STATUS]) == {"ok"}
        assert batch.group_index().max() == 2
        assert record.rollouts == len(batch)
        for group in batch.groups():
            others_B = (group[REWARD].sum() - group[REWARD]) / max(len(group) - 1, 1)
            expected_B = group[REWARD] - others_B * (len(group) > 1)
            torch.testing.assert_close(group[ADVANTAGE].values.double(), expected_B, atol=1e-6, rtol=0)
        failed = shown.take(torch.arange(len(batch), len(shown)))
        assert set(failed[STATUS]) <= {"failed"}
        assert all("was not given back" in error for error in failed[ERROR])
        assert len(failed) == record.metrics["failed/rollouts"]
        assert shown.take(torch.arange(len(batch))) == batch
    told = sum(record.metrics["failed/rollouts"] for record in run.telemetry.records)
    assert run.memories["buffer"]["pushed"] + told == 16 * run.machines["engine"].calls


@pytest.mark.parametrize("stop", [3, 5])
def test_stop_save_and_resume_with_rollouts_that_failed_equals_never_having_stopped(tmp_path, stop):
    straight = losing_run(tmp_path / "straight", steps=8)
    train(straight)
    train(losing_run(tmp_path / "broken", steps=stop))
    second = losing_run(tmp_path / "broken", steps=8)
    assert resume(second)
    train(second)
    same_training(straight, second, steps=8 - stop)
    metrics = [run.telemetry.records[-1].metrics for run in (straight, second)]
    assert metrics[0] == metrics[1]


def test_an_engine_of_which_nothing_comes_back_ends_the_run_with_the_reason(tmp_path):
    with pytest.raises(RuntimeError, match=r"step 0: none of the rollouts of 4 groups in a row .* was not given back"):
        train(losing_run(tmp_path, steps=2, share=1))


def test_an_engine_that_dies_ends_the_run_with_the_rollouts_it_was_writing(tmp_path):
    run = make_run(tmp_path, steps=4)
    run.machines = {**run.machines, "engine": FaultyEngine(run.machines["engine"], {1: dies})}
    with pytest.raises(ConnectionResetError) as caught:
        train(run)
    assert "The engine was writing 16 rollouts: rollout 0 of group 4, prompt 'p" in caught.value.__notes__[0]
