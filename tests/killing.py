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

def begun_and_doomed(root, step, *rest):
    saving = begin(root, step, *rest)
    if step == doomed:
        saving.add_done_callback(lambda _: threading.Timer(random.uniform(0.0, 0.1), end).start())
    return saving

def end():
    os.kill(os.getpid(), signal.SIGKILL)

begin, checkpoint.begin, doomed = checkpoint.begin, begun_and_doomed, int(sys.argv[1])
main(["train", *sys.argv[2:]])
"""


def kill_after(step: int, config: Path, overrides: tuple[str, ...]) -> None:
    """Starts the run in a process of its own, killed within a tenth of a second once it has saved this step."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", PROGRAM, str(step), str(config), *overrides]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
