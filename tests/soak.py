"""What every process of a long run holds as it goes on: memory, descriptors and threads, and whether they grow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

POOLS = ("event_engine", "default-executo", "grpcpp_sync_ser")
"""Threads of gRPC, by the first letters that Linux keeps of their names: it takes more of them whenever the machine is
too busy to serve what waits, and keeps them."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Footprint(step=50, rss=412_000_000, descriptors=31, threads=9)."""

    step: int
    rss: int
    descriptors: int
    threads: int
    """But for those of `POOLS`."""


@dataclass(frozen=True, kw_only=True)
class Trail:
    """The footprints of one process, oldest first."""

    name: str
    prints: list[Footprint]

    def slope(self) -> float:
        """By how much of its mean its memory grew in 100 steps: a straight line through all footprints."""
        steps, sizes = [one.step for one in self.prints], [one.rss for one in self.prints]
        mean_step, mean_size = sum(steps) / len(steps), sum(sizes) / len(sizes)
        along = sum((step - mean_step) * (size - mean_size) for step, size in zip(steps, sizes, strict=True))
        return 100 * along / sum((step - mean_step) ** 2 for step in steps) / mean_size

    def drift(self, what: str) -> int:
        """By how much the least of a number in the last third is above the most of it in the first."""
        numbers = [int(getattr(one, what)) for one in self.prints]
        third = max(1, len(numbers) // 3)
        return min(numbers[-third:]) - max(numbers[:third])

    def __str__(self) -> str:
        first, last = self.prints[0], self.prints[-1]
        return (
            f"{self.name}: {first.rss / 2**20:.1f} MiB after {first.step} steps, {last.rss / 2**20:.1f} after "
            f"{last.step} ({self.slope():+.2%} per 100), descriptors {first.descriptors} -> {last.descriptors}, "
            f"threads {first.threads} -> {last.threads}"
        )


def trails(run: Popen, metrics: Path, every: int, warm: int) -> list[Trail]:
    """Of the run and all it started that live from step `warm` to the end; looked at every so many steps."""
    seen: dict[int, tuple[str, list[Footprint]]] = {}
    due = warm
    while run.poll() is None:
        if (step := steps_done(metrics)) >= due:
            due = step - step % every + every
            for process in family(run.pid):
                if found := footprint(process, step):
                    seen.setdefault(process.pid, (name_of(process), []))[1].append(found)
        time.sleep(0.05)
    most = max(len(prints) for _, prints in seen.values())
    return [Trail(name=name, prints=prints) for name, prints in seen.values() if len(prints) >= most - 1]


def steps_done(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    return metrics.read_bytes().count(b'"kind": "step"')


def family(pid: int) -> Sequence[psutil.Process]:
    try:
        own = psutil.Process(pid)
        return [own, *own.children(recursive=True)]
    except psutil.Error:
        return []


def footprint(process: psutil.Process, step: int) -> Footprint | None:
    try:
        with process.oneshot():
            return Footprint(
                step=step,
                rss=process.memory_info().rss,
                descriptors=process.num_fds(),
                threads=threads(process.pid),
            )
    except (psutil.Error, OSError):
        return None


def threads(pid: int) -> int:
    """How many it has, but for those that grow with how busy the machine is."""
    names = [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    return sum(name not in POOLS for name in names)


def name_of(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    known = next((word for word in words if word.startswith(("megatron_rl", "ray::"))), words[0].split("/")[-1])
    return f"{known} ({process.pid})"
