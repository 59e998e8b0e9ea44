"""Runs that are ended without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, random, signal, sys, threading
from megatron_rl import checkpoint
from megatron_rl.cli import main

def saved_and_doomed(root, step, *rest):
    saved = save(root, step, *rest)
    if step == doomed:
        threading.Timer(random.uniform(0.0, 0.1), os.kill, (os.getpid(), signal.SIGKILL)).start()
    return saved

save, checkpoint.save, doomed = checkpoint.save, saved_and_doomed, int(sys.argv[1])
main(["train", *sys.argv[2:]])
"""


def kill_after(step: int, config: Path, overrides: tuple[str, ...]) -> None:
    """Starts the run in a process of its own, killed within a tenth of a second once it has saved this step."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", PROGRAM, str(step), str(config), *overrides]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
