"""The contract of a sink, held by every one of them."""

import errno
import io
import os

import pytest
from rich.console import Console

from megatron_rl.telemetry.console import ConsoleView
from megatron_rl.telemetry.fanout import Fanout
from megatron_rl.telemetry.jsonl import JsonlFile
from megatron_rl.telemetry.rollouts import RolloutFiles
from megatron_rl.telemetry.sink import RunFacts
from tests.fakes.run_folder import evaluation, rollout_batch, step_record
from tests.lost_disks import lost_disk
from tests.small_disks import fill, small_disk


def terminal():
    return ConsoleView(console=Console(file=io.StringIO(), force_terminal=True), sample_every=1)


def log():
    return ConsoleView(console=Console(file=io.StringIO(), force_terminal=False))


SINKS = [JsonlFile, RolloutFiles, terminal, log]


@pytest.mark.parametrize("make", SINKS)
def test_a_whole_run_and_its_resumption_pass_through(make, tmp_path):
    for after in (0, 1):
        run = Fanout(folder=tmp_path, required=[make()])
        run.start(after, 2)
        run.evaluation(evaluation(after))
        for step in range(after + 1, 3):
            run.wave(0, 4, 0)
            run.wave(4, 4, 90)
            run.step(step_record(step), rollout_batch(step, groups=1))
        run.close("finished")


@pytest.mark.parametrize("make", SINKS)
def test_a_batch_is_left_as_it_was(make, tmp_path):
    run = Fanout(folder=tmp_path, required=[make()])
    run.start(0, 1)
    batch = rollout_batch(1)
    run.step(step_record(1), batch)
    run.close("finished")
    assert batch == rollout_batch(1)


@pytest.mark.parametrize("make", SINKS)
def test_a_run_that_ends_before_its_first_step_closes(make, tmp_path):
    run = Fanout(folder=tmp_path, required=[make()])
    run.start(0, 5)
    run.close("interrupted")
    run.close("interrupted")


FILES = {JsonlFile: "metrics.jsonl", RolloutFiles: "rollouts/step_000001.parquet"}


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EROFS])
def test_a_disk_that_goes_away_is_told_with_the_file_it_did_not_take(tmp_path, code):
    with lost_disk(tmp_path) as disk:
        for make, name in FILES.items():
            run = Fanout(folder=disk.at / "run", required=[make()])
            run.start(0, 1)
            disk.lose(code)
            with pytest.raises(
                OSError, match=rf"^{disk.at}/run/{name} could not be written \({os.strerror(code)}\)"
            ) as told:
                run.step(step_record(1), rollout_batch(1))
            assert "\n" not in str(told.value)
            with pytest.raises(OSError, match=os.strerror(code)):
                Fanout(folder=disk.at / "run", required=[make()]).start(1, 2)
            disk.find()
            run.step(step_record(1), rollout_batch(1))
            assert (disk.at / "run" / name).stat().st_size


def test_a_disk_that_is_full_is_told_with_the_file_it_did_not_take(tmp_path):
    with small_disk(tmp_path, mebibytes=2) as disk:
        for make, name in FILES.items():
            run = Fanout(folder=disk / "run", required=[make()])
            run.start(0, 1)
            filler = fill(disk)
            with pytest.raises(OSError, match=rf"{disk}/run/{name} could not be written \(.*No space left on device"):
                run.step(step_record(1), rollout_batch(1))
            filler.unlink()


def test_a_run_is_called_what_its_folder_is_called(tmp_path):
    assert RunFacts(folder=tmp_path / "grpo", step=0, steps=1).name == "grpo"
