"""What is said, and what is left, when the disk of a run's folder goes away: the error is the kernel's own."""

import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megatron_rl import checkpoint
from megatron_rl.checkpoint import CheckpointError
from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, FAILED
from tests.lost_disks import LostDisk, lost_disk
from tests.test_checkpoint import MEMORY, FileActor
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture

POINTS = 12
"""Places of a save, evenly spread over what it asks of its disk, at which the disk goes away."""
QUESTIONS = 300
"""A few more than a save asks."""


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_disk_that_goes_away_anywhere_in_a_save_leaves_a_checkpoint_that_loads(tmp_path, code):
    refused = 0
    with lost_disk(tmp_path) as disk:
        checkpoint.save(disk.at, 1, FileActor(), MEMORY, {})
        for point in range(POINTS):
            step = point + 2
            disk.lose(code, after=point * QUESTIONS // POINTS)
            said = ""
            try:
                checkpoint.save(disk.at, step, FileActor(), MEMORY, {})
            except CheckpointError as error:
                said = str(error)
            disk.find()
            if said:
                refused += 1
                assert said.startswith(f"the checkpoint of step {step} could not be written to {disk.at}")
                assert os.strerror(code) in said
                assert "\n" not in said
            found = checkpoint.latest(disk.at)
            assert found is not None
            assert 1 <= checkpoint.load(found, FileActor())[0].step <= step
    assert refused > POINTS // 2


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_disk_that_goes_away_before_a_checkpoint_is_read_is_told_with_its_name(tmp_path, code):
    with lost_disk(tmp_path) as disk:
        folder = checkpoint.save(disk.at, 1, FileActor(), MEMORY, {}).folder
        for after in range(0, 40, 5):
            disk.lose(code, after)
            with pytest.raises(
                (CheckpointError, OSError), match=rf"{os.strerror(code)}.*{disk.at}|{disk.at}.*{os.strerror(code)}"
            ):
                checkpoint.load(folder, FileActor())
            disk.find()


def lose_after(disk: LostDisk, saved: str, code: int) -> threading.Thread:
    """Takes the disk away as soon as this checkpoint lies on it."""

    def watch() -> None:
        while not (disk.below / "run" / "checkpoints" / saved).exists():
            time.sleep(0.005)
        disk.lose(code)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    return watching


@pytest.mark.parametrize("code", [errno.ESTALE, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_a_run_whose_disk_goes_away_ends_in_a_sentence_and_goes_on_when_it_is_back(data, tmp_path, capfd, code):  # noqa: F811
    spec(data, tmp_path)
    with lost_disk(tmp_path / "lost") as disk:
        command = ["train", str(tmp_path / "run.yaml"), f"run.folder={disk.at}", "schedule.steps=8"]
        watching = lose_after(disk, "step_000002", code)
        assert main(command) == FAILED
        watching.join()
        told = capfd.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in told)
        assert told[-1].startswith(f"the run in {disk.at}/run failed: ")
        assert re.search(rf"{disk.at}/run/\S+ .*{os.strerror(code)}", told[-1])
        assert main(command) == FAILED
        assert re.search(rf"{disk.at}/run.*{os.strerror(code)}", capfd.readouterr().err.splitlines()[-1])
        disk.find()
        assert main(command) == DONE
        assert checkpoint.verify(disk.at / "run" / "checkpoints" / "step_000008").step == 8


def test_what_is_printed_to_a_full_disk_is_told_and_no_success():
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "megatron_rl.cli", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == FAILED
    assert ended.stderr == (
        "megatron-rl --help could not read, write or print what it should ([Errno 28] No space left on device).\n"
    )
