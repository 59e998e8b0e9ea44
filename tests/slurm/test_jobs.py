"""The job scripts under a real slurmctld with two slurmd: runs, time limits, preemption, requeue."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import write_tiny_model
from tests.slurm.cluster import Slurm, wait_until
from tests.test_launch import digest

CLONE = Path(__file__).parents[2]


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
        "schedule": {"steps": 12, "save_every": 12},
        "sampling": {"max_tokens": 8},
        "reward": "tests.fakes.lucky:score",
        "judge": {"processes": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    return folder / "run.yaml"


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder to submit from, with the scripts of this clone and the environment of these tests."""
    shutil.copytree(CLONE / "slurm", tmp_path / "slurm")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "runs/jobs").mkdir(parents=True)
    command = tmp_path / ".venv/bin/megatron-rl"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={CLONE} exec {sys.executable} -m megatron_rl.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


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


def ends(slurm: Slurm, job: str, root: Path) -> None:
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), f"job {job}", 240.0)
    said = "".join(path.read_text() for path in sorted((root / "runs/jobs").rglob("*.log")))
    assert slurm.state(job) == "COMPLETED", said[-4000:]


def steps_done(root: Path) -> int:
    metrics = root / "runs/job/metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def test_a_preempted_job_is_requeued_and_ends_with_the_result_of_one_that_was_not(slurm, config, root, tmp_path):
    plain = submit(slurm, root, str(config), f"run.folder={tmp_path / 'plain'}")
    ends(slurm, plain, root)
    job = submit(slurm, root, str(config))
    wait_until(lambda: steps_done(root) >= 2, "two steps")
    slurm.ask("scontrol", "requeue", job)
    slurm.start_again(job)
    ends(slurm, job, root)
    assert "resumed" in (root / "runs/jobs" / job / "driver.log").read_text()
    assert digest(tmp_path / "plain/job", 12) == digest(root / "runs/job", 12)


def test_a_signalled_job_saves_requeues_itself_and_goes_on(slurm, config, root):
    job = submit(slurm, root, str(config), "schedule.steps=60", "schedule.save_every=60")
    wait_until(lambda: steps_done(root) >= 2, "two steps")
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    slurm.start_again(job)
    ends(slurm, job, root)
    said = (root / "runs/jobs" / job / "driver.log").read_text()
    assert "stopped by SIGUSR1" in said
    assert "resumed" in said
    assert steps_done(root) == 60


@pytest.mark.slow
def test_a_job_that_runs_out_of_time_saves_before_slurm_kills_it(slurm, config, root):
    job = submit(slurm, root, str(config), "schedule.steps=100000", options=("--time=1",))
    slurm.start_again(job)
    slurm.ask("scancel", "--full", job)
    said = (root / "runs/jobs" / job / "driver.log").read_text()
    assert "out of time" in said
    assert "TIME LIMIT" not in said
    assert (root / "runs/job/checkpoints/latest").exists()


def test_a_dry_run_prints_what_each_node_would_run(root):
    asked = ["bash", "slurm/train.sbatch", "configs/jspo.yaml", "actor.tp=4", "--dry-run"]
    more = {"NODES": "2", "CONTAINER": "image", "MOUNTS": "/data:/data", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(asked, cwd=root, env=more, capture_output=True, text=True, check=True)
    join, drive = done.stdout.splitlines()
    assert "--nodes=2" in join
    assert "slurm/node.sh join" in join
    assert drive.rstrip().endswith(
        "megatron-rl train configs/jspo.yaml actor.tp=4 cluster.address=FIRST_ADDRESS:FREE_PORT"
    )
    assert all("--container-image=image" in line for line in (join, drive))


def test_without_arguments_a_script_says_how_it_is_used(root):
    done = subprocess.run(["bash", "slurm/train.sbatch"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")
