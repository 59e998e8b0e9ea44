"""Runs that go on while their checkpoints are written."""

import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from megatron_rl import checkpoint
from megatron_rl.beside import beside
from megatron_rl.loop import Run, resume, train
from megatron_rl.schedule import Schedule
from tests.fakes.tabular import TabularActor
from tests.test_loop import PROMPTS, make_run, same_training


class TakesItsTime(TabularActor):
    """Writes what it had when it was asked, a while later."""

    def save(self, folder: Path) -> Future[None]:
        held = TabularActor(PROMPTS)
        held.logits, held.momentum = self.logits.copy(), self.momentum.copy()

        def write() -> None:
            time.sleep(0.05)
            held.save(folder)

        return beside(write, "save")


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_checkpoints_written_while_the_run_goes_on_are_those_of_a_run_that_waits(tmp_path, stop):
    def make(name: str, steps: int) -> Run:
        schedule = Schedule(steps=steps, save_every=1, save_async=name != "waits", evaluate_every=4, keep=8)
        return make_run(tmp_path / name, steps, schedule=schedule, actor=TakesItsTime(PROMPTS))

    waits, straight = make("waits", 8), make("straight", 8)
    train(waits)
    train(straight)
    same_training(waits, straight, steps=8)
    assert [saved.step for saved in map(checkpoint.verify, checkpoint.folders(straight.saver.root))] == [*range(1, 9)]
    for ours, theirs in zip(*(checkpoint.folders(run.saver.root) for run in (waits, straight)), strict=True):
        assert (ours / "actor" / "table.json").read_bytes() == (theirs / "actor" / "table.json").read_bytes()
    first, second = make("broken", stop), make("broken", 8)
    train(first)
    assert resume(second)
    assert second.step == stop
    train(second)
    same_training(straight, second, steps=8 - stop)
    assert all(("save/landed" in record.parts) == (record.step > 2) for record in straight.telemetry.records)


def test_a_checkpoint_that_could_not_be_written_beside_ends_the_run_at_its_next_step(tmp_path):
    class DiskFull(TabularActor):
        def save(self, folder: Path) -> Future[None]:
            super().save(folder)
            failed: Future[None] = Future()
            failed.set_exception(OSError(28, "No space left on device"))
            return failed

    schedule = Schedule(steps=50, save_every=1, save_async=True)
    run = make_run(tmp_path, steps=50, schedule=schedule, actor=DiskFull(PROMPTS))
    with pytest.raises(checkpoint.CheckpointError, match="No space left on device"):
        train(run)
    assert run.step <= 2
