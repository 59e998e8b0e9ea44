import io
import json
import tarfile
from pathlib import Path

import pytest

from megatron_rl.bundle import Asked, gather, write
from megatron_rl.redaction import Redaction

CANARY = "canary-7f3e-do-not-tell"
ENVIRONMENT = {
    "HF_TOKEN": CANARY,
    "NCCL_DEBUG": "INFO",
    "RAY_AUTH_TOKEN": "short",
    "SLURM_SUBMIT_DIR": "/home/ada/clone",
    "SHELL_HISTORY": "rm",
    "USER": "ada",
}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that failed, with the canary wherever a run of its user might have left it."""
    folder = tmp_path / "jspo"
    for name in ("logs/vllm", "rollouts", "offending", "checkpoints/step_000002/actor"):
        (folder / name).mkdir(parents=True)
    (folder / "spec.yaml").write_text(f"model: {{folder: /home/ada/models}}\njudge: {{api_key: {CANARY}}}\n")
    (folder / "environment.json").write_text('{"torch": "2.13.0"}')
    lines = [json.dumps({"kind": "step", "step": step, "reward": 0.5}) for step in range(1000)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "st']))
    trace = f"Traceback (most recent call last):\n  /home/ada/x.py\nRuntimeError: {CANARY} was refused\n"
    (folder / "logs/rank_0001.log").write_text("begun\n" + trace + "more\n" * 2000)
    (folder / "logs/vllm/engine.log").write_text(f"password={CANARY}\n")
    (folder / "checkpoints/step_000002/actor/__0_0.distcp").write_text(f"weights {CANARY}")
    (folder / "checkpoints/latest").write_text("step_000002 5ea1\n")
    for name in ("rollouts/step_000001.parquet", "rollouts/step_000002.parquet", "offending/step_000003.parquet"):
        (folder / name).write_text(f"prompt {name}")
    return folder


def gathered(run: Path, **more: object) -> dict[str, bytes]:
    asked = Asked(run=run, environment=ENVIRONMENT, plan="8 GiB", **more)
    return gather(asked, Redaction.of(ENVIRONMENT))


def test_the_canary_is_nowhere_and_what_happened_is(run):
    members = gathered(run)
    whole = b"\n".join(members.values()).decode()
    for secret in (CANARY, "short", "ada", "weights", "prompt"):
        assert secret not in whole
    assert members["what_happened.txt"].startswith(b"rank_0001 failed first: RuntimeError: [redacted] was refused")
    assert members["spec.yaml"] == b"model: {folder: ~/models}\njudge: {api_key: [redacted]}"


def test_what_explains_the_failure_is_there(run):
    members = gathered(run, logs=(run / "metrics.jsonl",))
    assert json.loads(members["last_step.json"])["step"] == 999
    assert len(members["metrics.jsonl"].splitlines()) == 400
    assert members["plan.txt"] == b"8 GiB"
    assert b"RuntimeError" in members["logs/rank_0001.log"]
    assert len(members["logs/rank_0001.log"].splitlines()) == 451
    assert b"step_000002/actor/__0_0.distcp 31 bytes\nstep_000002 has no manifest.json" in members["checkpoints.txt"]
    assert members["environment.txt"].decode().splitlines() == [
        "NCCL_DEBUG=INFO",
        "RAY_AUTH_TOKEN=[redacted]",
        "SLURM_SUBMIT_DIR=~/clone",
    ]
    assert "logs/given/0_metrics.jsonl" in members


def test_rollouts_go_only_where_they_were_asked_for(run):
    assert [name for name in gathered(run) if name.startswith(("rollouts", "offending"))] == []
    asked = gathered(run, rollouts=True)
    assert [name for name in asked if name.startswith(("rollouts", "offending"))] == ["rollouts/step_000002.parquet"]


def test_a_folder_of_nothing_is_told_as_such(tmp_path):
    assert list(gathered(tmp_path)) == ["what_happened.txt", "plan.txt", "environment.txt"]


def test_entries_of_the_archive_belong_to_nobody(tmp_path):
    write({"logs/a.log": b"words"}, tmp_path / "x.tar.gz")
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        (entry,) = archive.getmembers()
        content = archive.extractfile(entry)
        assert isinstance(content, io.BufferedReader)
        assert (entry.name, entry.uname, entry.uid, content.read()) == ("bundle/logs/a.log", "", 0, b"words")
