"""Long runs hold no more at their end than at their beginning."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.soak import Footprint, Trail, threads, trails
from tests.test_processes import TP2, small_run

STEPS = int(os.environ.get("SOAK_STEPS", "500"))
"""That are looked at."""
WARM, EVERY = 400, 10
"""Ray's own server, a small process, has all the memory that it will ever hold after about 2,000 objects put."""


def trail(sizes: list[int], descriptors: list[int]) -> Trail:
    prints = [
        Footprint(step=10 * place, rss=size, descriptors=count, threads=4)
        for place, (size, count) in enumerate(zip(sizes, descriptors, strict=True))
    ]
    return Trail(name="a process", prints=prints)


def test_growth_is_told_from_noise():
    still = trail([100, 102, 100, 102, 100, 102], [5, 7, 5, 7, 5, 7])
    grows = trail([100, 101, 102, 103, 104, 105], [5, 6, 7, 8, 9, 10])
    assert abs(still.slope()) < 0.05 < grows.slope()
    assert grows.slope() == pytest.approx(10 / 102.5)
    assert (still.drift("descriptors"), grows.drift("descriptors")) == (-2, 3)


def test_threads_are_counted_but_for_pools_that_grow_on_a_busy_machine():
    over, before = threading.Event(), threads(os.getpid())

    def live(name: str) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        there.wait()
        over.wait()

    there = threading.Barrier(3)
    living = [threading.Thread(target=live, args=(name,)) for name in ("event_engine", "reader")]
    for thread in living:
        thread.start()
    there.wait()
    counted = threads(os.getpid())
    over.set()
    for thread in living:
        thread.join()
    assert counted == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("cut", [pytest.param([], id="one process"), pytest.param([TP2], id="two ranks under Ray")])
def test_five_hundred_steps_grow_no_process(cut, tmp_path):
    config = small_run(tmp_path)
    settings = [
        f"run.folder={tmp_path}",
        "run.name=run",
        f"schedule.steps={WARM + STEPS}",
        "schedule.save_every=50",
        *cut,
    ]
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(config), *settings]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=environment)
    walked = trails(run, tmp_path / "run" / "metrics.jsonl", EVERY, WARM)
    assert run.returncode == 0
    print("\n".join(map(str, walked)))
    assert walked
    for one in walked:
        assert one.slope() < 0.01, one
        assert one.drift("descriptors") <= 0, one
        assert one.drift("threads") <= 0, one
