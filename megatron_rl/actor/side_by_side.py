"""Work on many tensors, shared between two threads: reading, hashing and writing bytes holds no lock of Python's."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from megatron_rl.beside import all_beside

THREADS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def shares(items: Sequence[Item], size: Callable[[Item], int]) -> list[list[Item]]:
    """Runs of neighbours of about equal size, one for each thread; one that would be empty is left out."""
    total, before = sum(map(size, items)), 0
    runs: list[list[Item]] = [[] for _ in range(THREADS)]
    for item in items:
        runs[min(THREADS - 1, before * THREADS // max(total, 1))].append(item)
        before += size(item)
    return [run for run in runs if run]


def side_by_side(work: Callable[[Item], Result], parts: Sequence[Item]) -> list[Result]:
    """What the work gives for each part, in their order; the first error is raised when all that run have ended."""
    return all_beside(work, parts, THREADS)
