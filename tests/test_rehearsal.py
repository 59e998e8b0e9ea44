"""Steps of a run made again beside it: the real actor, the embedded engine."""

import hashlib
import shutil
from pathlib import Path

import pytest

from megatron_rl import launch
from megatron_rl.checkpoint import folders
from megatron_rl.rehearsal import ALWAYS, by_command, plan_rehearsal, rehearse
from megatron_rl.spec.load import load
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:  # noqa: F811
    """Four steps, saved after the second and the fourth."""
    runs = tmp_path_factory.mktemp("rehearsed")
    launch.train(spec(data, runs, "schedule.evaluate_every=0"))
    return runs / "run"


def here(config: Path, *settings: str):
    """`by_command` without the processes, which tests would wait for."""

    def train(folder: Path, last: int) -> None:
        schedule = (f"schedule.steps={last}", f"schedule.save_every={last}", f"run.folder={folder}")
        launch.train(load(config, (*ALWAYS, *schedule, *settings)))

    return train


def contents(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [f"{path} {path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return "\n".join(told)


def test_what_is_made_is_told_by_the_checkpoints_that_are_there(run, tmp_path):
    near, far = plan_rehearsal(run, 2), plan_rehearsal(run, 1)
    assert (near.first, near.stop, near.last, near.end.name) == (2, 2, 4, "step_000004")
    assert (far.first, far.stop, far.last, far.end) == (4, 5, 5, None)
    begun = plan_rehearsal(tmp_path, 4)
    assert (begun.start, begun.first, begun.stop, begun.last) == (None, 0, 2, 4)
    assert str(begun) == f"steps 1 to 4 of {tmp_path}, begun, straight against stopped after step 2"


def test_steps_beyond_the_run_are_the_same_with_a_stop_between_and_nobody_touches_it(run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(run, alone)
    shutil.rmtree(folders(alone / "checkpoints")[0])
    before, config = contents(alone), run / "spec.yaml"
    plan = plan_rehearsal(alone, 2)
    assert (plan.first, plan.stop, plan.last, plan.end) == (4, 5, 6, None)
    assert rehearse(plan, load(config), tmp_path / "scratch", here(config)) is None
    assert contents(alone) == before


def test_a_run_that_cannot_be_repeated_is_told_by_what_differs_first(run, tmp_path):
    config = run / "spec.yaml"
    plan = plan_rehearsal(run, 2)
    found = rehearse(plan, load(config), tmp_path, here(config, "actor.optimizer.learning_rate.peak=0.1"))
    assert found.place.startswith("step 4, column ")


def test_steps_that_fail_are_told_with_their_last_words(tmp_path):
    train = by_command(Path("nowhere.yaml"), (), tmp_path)
    with pytest.raises(RuntimeError, match=r"ended with code 2: nowhere\.yaml: there is no such file"):
        train(tmp_path / "straight", 2)


@pytest.mark.slow
def test_processes_of_their_own_make_the_same_steps(run, tmp_path):
    config = run / "spec.yaml"
    assert rehearse(plan_rehearsal(run, 1), load(config), tmp_path, by_command(config, (), tmp_path)) is None
