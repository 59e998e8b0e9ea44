"""Runs that are ended at any moment leave nothing behind on the machine: no process, no memory, no folder."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.test_processes import TP2, small_run

KILLS = int(os.environ.get("REMAINS_KILLS", "6"))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
LATEST_S = float(os.environ.get("REMAINS_LATEST_S", "30"))
"""A run has begun to learn by then, on most machines: so long after Ray began to start."""
LOOK_S, END_S, GONE_S = 0.2, 90.0, 30.0
"""How often a run is looked at, how long it may take to end, and what it started to be gone after it."""
WANDB = "tmp*wandb-*"
"""Folders that it makes when it is imported, as Megatron-Core does in the driver, and removes when Python ends."""
OURS = ("megatron_rl", "psm_", "plasma", "vllm_")
"""How files in memory of a run begin."""


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What there was of a run after its end."""

    processes: list[str]
    memory: list[str]
    files: list[str]
    seconds: float
    """From the command's end until all was gone, or was given up."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("data"))


@pytest.fixture
def temporary():
    """A folder for temporary files that this run alone has, with a short name as Ray's sockets want it."""
    folder = Path(tempfile.mkdtemp(prefix="remains-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def killed(config: Path, runs: Path, temporary: Path, number: signal.Signals, after_s: float) -> Remains:
    """Starts the run, sends it the signal a while after Ray's folder is there, and looks what remains."""
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(config), f"run.folder={runs}", "run.name=run"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
    }
    there = in_memory()
    run = subprocess.Popen(
        [*command, TP2, "schedule.steps=100000"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    family: dict[int, psutil.Process] = {}
    ends, told, looks = float("inf"), False, 0
    while run.poll() is None:
        family |= {one.pid: one for one in descendants(run.pid)}
        if ends == float("inf") and any(temporary.glob("mrl-*")):
            ends = time.monotonic() + after_s
        if not told and time.monotonic() > ends:
            told = True
            os.killpg(run.pid, number) if number == signal.SIGINT else run.send_signal(number)
        looks += told
        assert looks * LOOK_S < END_S, f"{number.name} after {after_s:.1f} s did not end the run"
        time.sleep(LOOK_S)
    began = time.monotonic()
    while time.monotonic() < began + GONE_S:
        left = [one for one in family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        files = [path.name for path in temporary.iterdir() if run.returncode >= 0 or not path.match(WANDB)]
        memory = sorted(in_memory() - there)
        if not (left or files or memory):
            break
        time.sleep(0.1)
    return Remains(
        processes=[" ".join(one.cmdline()) for one in left if one.is_running()],
        memory=memory,
        files=files,
        seconds=time.monotonic() - began,
    )


def in_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(OURS)}


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(KILLS))
def test_a_run_that_is_killed_leaves_nothing_behind(config, temporary, tmp_path, draw):
    chance = random.Random(draw)
    number, after_s = SIGNALS[draw % len(SIGNALS)], chance.uniform(0.0, LATEST_S)
    remains = killed(config, tmp_path, temporary, number, after_s)
    print(f"{number.name} after {after_s:.1f} s: {remains}", flush=True)
    assert (remains.processes, remains.memory, remains.files) == ([], [], [])
