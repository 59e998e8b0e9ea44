import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from megatron_rl import bundle
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


def test_links_of_a_run_lead_nowhere_and_pipes_are_not_waited_for(run, tmp_path):
    (tmp_path / "diary").write_text("dear diary\n")
    os.mkfifo(tmp_path / "pipe")
    for name in (
        "spec.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints/latest",
        "rollouts/step_000003.parquet",
    ):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "diary")
    (run / "logs/rank_0002.log").symlink_to(tmp_path / "diary")
    (run / "rollouts/step_000004.parquet").symlink_to(tmp_path / "pipe")
    (run / "checkpoints/step_000003").mkdir()
    (run / "checkpoints/step_000003/actor").symlink_to(tmp_path)
    os.mkfifo(run / "logs/rank_0003.log")
    members = gathered(run, rollouts=True)
    assert b"diary" not in b"".join(members.values())
    assert "rollouts/step_000002.parquet" in members
    (tmp_path / "newest.log").symlink_to(tmp_path / "diary")
    assert b"dear" in gathered(run, logs=(tmp_path / "newest.log",))["logs/given/0_newest.log"]


def test_a_log_without_bound_is_read_at_its_ends(run, monkeypatch):
    monkeypatch.setattr(bundle, "READ_BYTES", 1000)
    path = run / "logs/rank_0001.log"
    path.write_text("begun\n" + "password=tiny " * 5000 + "\nRuntimeError: at last\n")
    packed = gathered(run)["logs/rank_0001.log"].decode()
    assert packed.splitlines()[0] == "begun"
    assert packed.endswith("what stood here is left out …\nRuntimeError: at last")
    path.write_text("a" * 50_000)
    monkeypatch.setattr(bundle, "READ_BYTES", 1 << 20)
    assert len(gathered(run)["logs/rank_0001.log"].decode()) == bundle.LINE_CHARACTERS + 1
