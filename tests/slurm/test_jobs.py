"""The job scripts under a real slurmctld with two slurmd: runs, time limits, preemption, requeue."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from megatron_rl import launch
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import write_tiny_model
from megatron_rl.spec.load import load
from tests.slurm.cluster import OVER, Slurm, wait_until
from tests.slurm.conftest import CLONE
from tests.test_launch import digest

STEPS = 40
"""So many that a job is still at work when it is signalled."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A run of some seconds; run.folder is to be given."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_model(folder / "model", seed=0)
    write_prompts(folder / "train.parquet", Arithmetic(hardest=2).prompts(64, seed=0))
    written = {
        "extends": str(CLONE / "configs/base/toy.yaml"),
        "run": {"name": "job"},
        "model": {"folder": str(folder / "model")},
        "data": {"train": [str(folder / "train.parquet")], "evaluate": []},
        "schedule": {"steps": STEPS, "save_every": STEPS},
        "sampler": {"uniform": {"prompts": 2, "samples": 4}},
        "sampling": {"max_tokens": 8},
        "reward": "tests.fakes.lucky:score",
        "judge": {"processes": 1, "deadline_s": 60.0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    return folder / "run.yaml"


def submit(slurm: Slurm, root: Path, *arguments: str, options: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        ["sbatch", *options, "slurm/train.sbatch", *arguments],
        cwd=root,
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"Submitted batch job (\d+)", done.stdout)[0]


def said(root: Path, job: str) -> str:
    return (root / "runs/jobs" / job / "driver.log").read_text()


def steps_done(root: Path) -> int:
    metrics = root / "runs/job/metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def reach(slurm: Slurm, job: str, root: Path, steps: int) -> None:
    """Waits until so many steps are done, and no longer than the job runs."""

    def is_there() -> bool:
        done = steps_done(root)
        assert done >= steps or slurm.facts(job)["JobState"] not in OVER, slurm.told(job)
        return done >= steps

    wait_until(is_there, f"{steps} steps")


def signal(slurm: Slurm, job: str, root: Path, sent: str = "USR1") -> None:
    """As a scheduler sends it: to the job's script alone. Returns when the run has been told."""
    refused = slurm.ask("scancel", "--batch", f"--signal={sent}", job)
    assert refused == "", refused
    wait_until((root / "runs/jobs" / job / "stop").exists, f"the script to hear of {sent}", 60.0)


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_ends_as_one_that_never_was(slurm, config, root, tmp_path):
    job = submit(slurm, root, str(config), "schedule.save_every=5")
    reach(slurm, job, root, 6)  # a machine that is busy may not give it the time for another save
    slurm.ask("scontrol", "requeue", job)
    slurm.start_again(job)
    launch.train(load(config, (f"run.folder={tmp_path / 'plain'}",)))
    slurm.end(job)
    assert "resumed runs/job after" in said(root, job)
    assert steps_done(root) == STEPS
    assert digest(tmp_path / "plain/job", STEPS) == digest(root / "runs/job", STEPS)


def test_a_run_over_two_nodes_is_signalled_requeued_and_ends_as_one_that_never_was(slurm, config, root, tmp_path):
    cut = ("actor.dp=2", "cluster.cpus_per_rank=1")
    job = submit(slurm, root, str(config), *cut, options=("--nodes=2",))
    reach(slurm, job, root, 2)
    assert slurm.hosts(job, "ray::RankHost") == {"left", "right"}
    signal(slurm, job, root)
    slurm.start_again(job)
    launch.train(load(config, (f"run.folder={tmp_path / 'plain'}", "actor.dp=2")))
    slurm.end(job)
    assert "stopped by SIGUSR1" in said(root, job)
    assert "resumed runs/job after" in said(root, job)
    assert steps_done(root) == STEPS
    wait_until(lambda: slurm.left_of(job) == [], "every process of the job to leave", 60.0)
    assert digest(tmp_path / "plain/job", STEPS) == digest(root / "runs/job", STEPS)


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_saves_before_slurm_kills_it(slurm, config, root):
    # In a job of one minute the signal of the script would come at once; what is tested is the end time.
    unsignalled = ("--time=1", "--signal=B:CONT@1")
    job = submit(slurm, root, str(config), "schedule.steps=100000", options=unsignalled)
    slurm.start_again(job)
    slurm.ask("scancel", "--full", job)
    assert "out of time" in said(root, job)
    assert "TIME LIMIT" not in said(root, job)
    assert (root / "runs/job/checkpoints/latest").exists()


SLEEPS = """\
#!/bin/bash
trap 'exit ${CODE:-75}' USR1 TERM
echo begun
while :; do sleep 0.1; done
"""
"""A driver that is soon there, and soon gone when it is told to stop."""


@pytest.fixture
def sleeping(root) -> Path:
    """A folder to submit from, as it is right after a clone, whose runs do nothing."""
    (root / ".venv/bin/megatron-rl").write_text(SLEEPS)
    return root


def begin(slurm: Slurm, root: Path, *options: str) -> str:
    job = submit(slurm, root, "x.yaml", options=options)
    log = root / "runs/jobs" / job / "driver.log"
    wait_until(lambda: log.exists() and "begun" in log.read_text(), "the driver", 60.0)
    return job


def test_a_job_that_is_cancelled_ends_for_good_and_says_so(slurm, sleeping):
    job = begin(slurm, sleeping)
    slurm.ask("scancel", job)
    wait_until(lambda: slurm.facts(job)["JobState"] in OVER, f"job {job} to end", 60.0)
    told = slurm.facts(job)
    assert (told["JobState"], told["Restarts"]) == ("CANCELLED", "0"), slurm.told(job)
    assert f"job {job} was cancelled and ends" in (sleeping / f"megatron_rl_{job}.log").read_text()


@pytest.mark.slow
def test_a_job_whose_driver_is_killed_is_tried_again_and_not_for_ever(slurm, sleeping):
    job = begin(slurm, sleeping, "--export=ALL,MAX_RESTARTS=1")
    for times in (1, 2):
        slurm.kill(job, ".venv/bin/megatron-rl")
        if times == 1:
            slurm.start_again(job)
            wait_until(lambda: said(sleeping, job).count("begun") == 2, "the driver", 60.0)
    wait_until(lambda: slurm.facts(job)["JobState"] in OVER, f"job {job} to end", 60.0)
    assert slurm.facts(job)["ExitCode"] == "137:0"
    log = (sleeping / f"megatron_rl_{job}.log").read_text()
    assert "it failed: signal 9 ended its driver, and 2 attempts in a row left no new checkpoint" in log


@pytest.mark.slow
def test_a_job_whose_limit_is_shorter_than_its_warning_ends_and_says_so(slurm, sleeping):
    job = begin(slurm, sleeping, "--time=1", "--export=ALL,MAX_RESTARTS=1")
    slurm.start_again(job)
    wait_until(lambda: slurm.facts(job)["JobState"] in OVER, f"job {job} to end", 60.0)
    log = (sleeping / f"megatron_rl_{job}.log").read_text()
    assert "2 attempts in a row left no new checkpoint. Its time limit is 00:01:00" in log
