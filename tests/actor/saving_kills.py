"""A program that is killed while it saves, again and again: `python saving_kills.py MODEL ROOT KILLS` prints steps.

Each life is a fork, so that Megatron is imported once: it loads the latest checkpoint, tells its step, and saves step
after step until it is killed at a random moment. Only the one process is killed, as the system would; a process that it
had started to help it write would live on, hold the output open and be waited for by whoever reads it.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from megatron_rl import checkpoint
from megatron_rl.actor import groups
from tests.actor.training import actor_of

MEMORY = {"sampler": {"drawn": 7}}


def live(model: Path, root: Path, tell: int) -> None:
    """Tells the step it goes on from, then how long one save takes, and saves for ever."""
    groups.join_alone()
    actor = actor_of(model)
    step, folder = -1, checkpoint.latest(root)
    if folder is not None:
        saved, memory = checkpoint.load(folder, actor)
        assert memory == MEMORY
        step = saved.step
    os.write(tell, f"{step}\n".encode())
    while True:
        step += 1
        start = time.perf_counter()
        checkpoint.save(root, step, actor, MEMORY, {})
        checkpoint.prune(root, keep=2)
        os.write(tell, f"{time.perf_counter() - start}\n".encode())


def die(model: Path, root: Path, after: float) -> tuple[int, float]:
    """Saves for so many seconds, or once where those are 0; returns the step it began from, and the seconds."""
    heard, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(model, root, tell)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(tell)
    with os.fdopen(heard) as stream:
        began = stream.readline()
        seconds = after or float(stream.readline() or 0.0)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not began or os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise SystemExit(f"a life ended by itself ({status}) after it began from {began!r}")
    return int(began), seconds


def main(model: Path, root: Path, kills: int) -> None:
    draw = random.Random(0)
    began, one_save_s = die(model, root, after=0.0)
    lives = [draw.uniform(0.0, 4.0) * one_save_s for _ in range(kills)]
    print(began, *(die(model, root, seconds)[0] for seconds in (*lives, 0.01)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
