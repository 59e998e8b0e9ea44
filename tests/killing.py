"""Runs that are ended from outside, without a word."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def kill_after(folder: Path, step: int, config: Path, overrides: tuple[str, ...]) -> None:
    """Starts the run in a process of its own, and ends that without a word once it has saved this step."""
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(config), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # our own command
    latest = folder / "checkpoints" / "latest"
    while not (latest.exists() and latest.read_text().startswith(f"step_{step:06d} ")):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
