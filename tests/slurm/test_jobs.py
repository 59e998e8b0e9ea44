"""The job scripts under a real slurmctld with two slurmd: runs, time limits, preemption, requeue."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from signal import SIGUSR1

import pytest
import yaml

from megatron_rl import launch
from megatron_rl.data.arithmetic import Arithmetic
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import write_tiny_model
from megatron_rl.spec.load import load
from tests.slurm.cluster import OVER, Slurm, wait_until
from tests.test_launch import digest

CLONE = Path(__file__).parents[2]
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
    for name, module in (("megatron-rl", "megatron_rl.cli"), ("ray", "ray.scripts.scripts")):
        command = tmp_path / ".venv/bin" / name
        command.write_text(f'#!/bin/sh\nPYTHONPATH={CLONE} exec {sys.executable} -m {module} "$@"\n')
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


STUBS = {
    "srun": 'echo "$*" > "$HERE/started"; until [ -e "$HERE/runs/jobs/7/stop" ]; do sleep 1; done; exit ${CODE:-138}',
    "scontrol": 'echo "$*" >> "$HERE/asked"; [ $1 != requeue ] || [ $(grep -c requeue "$HERE/asked") -gt ${BUSY:-0} ]',
    "squeue": "echo RUNNING",
    "sleep": "/bin/sleep 0.05",
}
"""A Slurm of scripts: the driver ends with CODE once it is told to stop, and the controller is too busy BUSY times."""


@pytest.mark.parametrize(
    ("told", "requeues"),
    [
        ({"CODE": "75"}, 1),  # stopped and saved
        ({"CODE": "138"}, 1),  # told to stop before its handlers were there
        ({"CODE": "75", "BUSY": "2"}, 3),
        ({"CODE": "1", "SLURM_RESTART_COUNT": "3"}, 0),
        ({"CODE": "2"}, 0),
        ({"CODE": "0"}, 0),
    ],
    ids=str,
)
def test_a_signalled_script_puts_back_what_has_steps_left(root, told, requeues):
    (root / "bin").mkdir()
    for name, does in STUBS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (root / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "a", "SLURM_JOB_END_TIME": "9"}
    given = {"HERE": str(root), "PATH": f"{root / 'bin'}:/usr/bin:/bin", **job, **told}
    script = subprocess.Popen(["bash", "slurm/train.sbatch", "x.yaml"], cwd=root, env=given, stderr=subprocess.PIPE)
    wait_until((root / "started").exists, "the driver", 30.0)
    script.send_signal(SIGUSR1)
    said = script.communicate(timeout=30)[1].decode()
    assert script.returncode == int(told["CODE"]), said
    assert (root / "asked").read_text().count("requeue 7") == requeues
    attempt = f" --attempt 7.{told.get('SLURM_RESTART_COUNT', 0)}\n"
    assert (root / "started").read_text().endswith(f"megatron-rl train x.yaml --until 9 --margin 10{attempt}")


RAY = """\
#!/bin/sh
echo "$*" >> "$HERE/asked"
case "$*" in *--head*) echo "  ray start --address='127.0.0.1:$PORT'"; exec /bin/sleep 60 ;; esac
"""
"""Says where it stands, as Ray does."""


def test_the_others_join_the_first_node_where_the_system_put_it(root):
    (root / "bin").mkdir()
    (root / "bin" / "scontrol").write_text("#!/bin/sh\necho NodeAddr=here\n")
    (root / "bin" / "scontrol").chmod(0o755)
    (root / ".venv/bin/ray").write_text(RAY)
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = str(first.getsockname()[1])
        given = {"HERE": str(root), "PORT": port, "PATH": f"{root / 'bin'}:/usr/bin:/bin", "SLURMD_NODENAME": "a"}
        join = ["bash", "slurm/node.sh", "join", str(root)]
        with subprocess.Popen(join, cwd=root, env={**given, "SLURM_NODEID": "0"}) as head:
            subprocess.run(join, cwd=root, env={**given, "SLURM_NODEID": "1"}, check=True, timeout=30)
            drive = ["bash", "slurm/node.sh", "drive", str(root), "joined", "echo", "train"]
            told = subprocess.run(drive, cwd=root, env=given, check=True, capture_output=True, text=True, timeout=30)
            head.kill()
    asked = (root / "asked").read_text().splitlines()
    assert "--head --port 0 " in asked[0]
    assert asked[1].startswith(f"start --address 127.0.0.1:{port} ")
    assert told.stdout == f"train cluster.address=127.0.0.1:{port}\n"


def test_a_driver_does_not_wait_for_nodes_that_will_never_come(root):
    (root / "lost").touch()
    asked = ["bash", "slurm/node.sh", "drive", str(root), "joined", "echo", "begun"]
    done = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a node of this job could not join the others" in done.stderr


def test_a_dry_run_prints_what_each_node_would_run(root):
    asked = ["bash", "slurm/train.sbatch", "configs/jspo.yaml", "actor.tp=4", "--dry-run"]
    more = {"NODES": "2", "CONTAINER": "image", "MOUNTS": "/data:/data", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(asked, cwd=root, env=more, capture_output=True, text=True, check=True)
    join, drive = done.stdout.splitlines()
    assert "--nodes=2" in join
    assert "slurm/node.sh join" in join
    assert drive.rstrip().endswith("joined megatron-rl train configs/jspo.yaml actor.tp=4 cluster.machines=2")
    assert all("--container-image=image" in line for line in (join, drive))


def test_without_arguments_a_script_says_how_it_is_used(root):
    done = subprocess.run(["bash", "slurm/train.sbatch"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch")
