"""The job scripts with programs of a few lines in the place of Slurm's, Ray's and ours."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from signal import SIGUSR1

import pytest

from tests.slurm.cluster import wait_until

STUBS = {
    "srun": """
echo "$*" > "$HERE/started"
until [ -e "$HERE/runs/jobs/7/stop" ] || [ -n "${DIES:-}" ]; do sleep 1; done
[ -z "${SAVES:-}" ] || touch "$HERE/runs/jobs/7/saved"
exit $CODE""",
    "scontrol": """
echo "$*" >> "$HERE/asked"
case "$*" in
    *"show job"*) echo "JobId=7 JobState=RUNNING Reason=None Restarts=${SLURM_RESTART_COUNT:-0} $FACTS" ;;
    requeue*) [ $(grep -c requeue "$HERE/asked") -gt ${BUSY:-0} ] ;;
esac""",
    "squeue": "exit 1",
    "sleep": "/bin/sleep 0.05",
}
"""A Slurm of scripts: the driver ends with CODE once it is told to stop, or by itself where it DIES, with a new
checkpoint where it SAVES; the controller is too busy BUSY times."""
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "a", "SLURM_JOB_END_TIME": "9"}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What an attempt of the job that `STUBS` run came to."""

    requeues: int
    said: str


def attempt(root: Path, **told: str) -> Attempt:
    """One more of job 7, with these variables."""
    (root / "bin").mkdir(exist_ok=True)
    for name, does in STUBS.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (root / "bin" / name).chmod(0o755)
    for left in ("asked", "started"):
        (root / left).unlink(missing_ok=True)
    given = {"HERE": str(root), "PATH": f"{root / 'bin'}:/usr/bin:/bin", "FACTS": "", **JOB, **told}
    script = subprocess.Popen(["bash", "slurm/train.sbatch", "x.yaml"], cwd=root, env=given, stderr=subprocess.PIPE)
    wait_until((root / "started").exists, "the driver", 30.0)
    if "DIES" not in told:
        script.send_signal(SIGUSR1)
    said = script.communicate(timeout=30)[1].decode()
    assert script.returncode == int(told["CODE"]), said
    return Attempt(requeues=(root / "asked").read_text().count("requeue 7"), said=said)


@pytest.mark.parametrize(
    ("told", "requeues"),
    [
        ({"CODE": "75"}, 1),  # stopped and saved
        ({"CODE": "138"}, 1),  # told to stop before its handlers were there
        ({"CODE": "75", "BUSY": "2"}, 3),
        ({"CODE": "1", "DIES": "yes"}, 1),
        ({"CODE": "1", "DIES": "yes", "MAX_RESTARTS": "0"}, 0),
        ({"CODE": "75", "SAVES": "yes", "MAX_RESTARTS": "0"}, 1),
        ({"CODE": "137", "DIES": "yes"}, 1),  # its memory was needed elsewhere
        ({"CODE": "139", "DIES": "yes"}, 1),
        ({"CODE": "130", "DIES": "yes"}, 0),
        ({"CODE": "2"}, 0),
        ({"CODE": "0"}, 0),
    ],
    ids=str,
)
def test_a_script_puts_back_what_has_steps_left(root, told, requeues):
    assert attempt(root, **told).requeues == requeues
    arguments = f"--until 9 --margin 10 --attempt 7.0 --where {root}/runs/jobs/7/where"
    assert (root / "started").read_text().endswith(f"megatron-rl train x.yaml {arguments}\n")


def test_attempts_count_against_a_job_where_they_leave_no_checkpoint(root):
    fails = {"CODE": "137", "DIES": "yes", "MAX_RESTARTS": "1"}
    assert attempt(root, **fails).requeues == 1
    assert attempt(root, **fails, SLURM_RESTART_COUNT="1", SAVES="yes").requeues == 1
    assert attempt(root, CODE="75", SLURM_RESTART_COUNT="2", SAVES="yes").requeues == 1
    assert attempt(root, **fails, SLURM_RESTART_COUNT="3").requeues == 1
    last = attempt(root, **fails, SLURM_RESTART_COUNT="4")
    assert (last.requeues, "signal 9 ended its driver, and 2 attempts in a row left no new" in last.said) == (0, True)
    assert attempt(root, **fails).requeues == 1, "another job that has this number"


def test_a_job_too_short_to_get_anywhere_ends_and_says_what_to_change(root):
    told = {"CODE": "75", "FACTS": "TimeLimit=00:01:00"}
    assert [attempt(root, **told, SLURM_RESTART_COUNT=str(n)).requeues for n in range(3)] == [1, 1, 1]
    last = attempt(root, **told, SLURM_RESTART_COUNT="3")
    assert last.requeues == 0
    said = last.said
    assert "4 attempts in a row left no new checkpoint. Its time limit is 00:01:00" in said
    assert "give it more time (sbatch --time)" in said


def test_a_job_is_not_to_blame_for_being_preempted(root):
    preempted = "StartTime=2026-11-22T05:00:00 PreemptTime=2026-11-22T05:00:01"
    told = {"CODE": "75", "FACTS": preempted, "MAX_RESTARTS": "0"}
    assert [attempt(root, **told, SLURM_RESTART_COUNT=str(n)).requeues for n in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("facts", "requeues"),
    [
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=None", 0),  # cancelled
        ("JobState=COMPLETING Reason=None Restarts=0 StartTime=2026-11-22T05 PreemptTime=2026-11-22T04", 0),
        ("JobState=COMPLETING Reason=None Restarts=0 StartTime=2026-11-22T05 PreemptTime=2026-11-22T06", 1),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0 PreemptTime=None", 1),
        ("JobState=RUNNING Reason=None Restarts=0 Requeue=0", 0),  # asked to end once it has saved
        ("JobState=COMPLETING Reason=None Restarts=1", 0),  # Slurm has put it back
        ("", 0),  # no answer, and it may have been cancelled
    ],
)
def test_a_job_that_was_cancelled_does_not_come_back(root, monkeypatch, facts, requeues):
    monkeypatch.setitem(
        STUBS, "scontrol", f'echo "$*" >> "$HERE/asked"; [ $1 = requeue ] || echo {facts}; [ -n "{facts}" ]'
    )
    for code in ("75", "137"):
        assert attempt(root, CODE=code).requeues == requeues


def test_where_slurm_does_not_say_when_the_job_ends_the_run_is_not_told_a_time(root):
    said = attempt(root, CODE="0", SLURM_JOB_END_TIME="").said
    assert "Slurm does not say when job 7 ends" in said
    assert "--until" not in (root / "started").read_text()


@pytest.mark.parametrize(("is_new", "ends"), [(True, "exit 0"), (True, "kill -9 $$"), (False, "exit 0")])
def test_a_node_notes_whether_the_run_has_a_new_checkpoint_however_the_driver_ended(root, is_new, ends):
    latest = root / "run/checkpoints/latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("step_000005 before\n")
    os.utime(latest, (0, 0))
    does = f"echo {root}/run > {root}/where; {f'echo step_000010 > {latest}; ' if is_new else ''}{ends}"
    asked = ["bash", "slurm/node.sh", "drive", str(root), "alone", "bash", "-c", does]
    done = subprocess.run(asked, cwd=root, capture_output=True, check=False, timeout=30)
    assert done.returncode == (137 if "kill" in ends else 0)
    assert (root / "saved").exists() == is_new


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
