"""Prints what a weight sync costs beside a plain copy of its bytes and beside gathering whole tensors to slice them.

    python tools/bench_sync.py [--hidden 1024] [--layers 8] [--verify sample] [--slot-bytes 4194304]

From two Megatron ranks to two vLLM workers: all in one process, then between two processes over shared memory. The
last column is of processor time, of the busier process where there are two: what wall time comes to on a machine that
has a free core for each.
"""

import argparse
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.digest import Verify
from megatron_rl.reshard.engines import huggingface_layout, vllm_layout
from megatron_rl.reshard.layout import Layout, ModelShape
from megatron_rl.reshard.local import execute_local
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import split, together
from megatron_rl.reshard.plan import ReshardPlan, plan
from megatron_rl.reshard.ring import SharedMemoryWire
from megatron_rl.reshard.transport import Exchange, Parameters, SyncReport

REPEATS = 15


def shape_of(hidden: int, layers: int) -> ModelShape:
    """A Qwen3-like model in float32."""
    return ModelShape(
        family="qwen3",
        layers=layers,
        hidden=hidden,
        heads=hidden // 64,
        kv_heads=max(2, hidden // 256),
        head_dim=64,
        ffn=3 * hidden,
        vocabulary=32_000,
        tied=True,
        item_bytes=4,
    )


def tensors(layout: Layout, fill: float) -> dict[int, Parameters]:
    """Every rank's tensors, each page of them touched."""
    return {
        rank: {tensor.key: torch.full(tensor.shape, fill) for tensor in layout.tensors(rank)}
        for rank in range(len(layout.ranks))
    }


class Cost(NamedTuple):
    """Seconds on the wall and of the processor."""

    wall: float
    busy: float


def best_of(action: Callable[[], object]) -> Cost:
    """The least of several runs, the first left out: it touches new pages."""
    action()
    return least([cost_of(action) for _ in range(REPEATS)])


def cost_of(action: Callable[[], object]) -> Cost:
    """Of one run."""
    wall, busy = time.perf_counter(), time.process_time()
    action()
    return Cost(time.perf_counter() - wall, time.process_time() - busy)


def least(costs: Sequence[Cost]) -> Cost:
    """Of either kind of seconds."""
    return Cost(min(cost.wall for cost in costs), min(cost.busy for cost in costs))


def plain_copy(size: int) -> Cost:
    """To copy this many bytes from one place to another."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return best_of(lambda: target.copy_(source))


def gather_then_slice(shape: ModelShape, source: Layout, target: Layout) -> Callable[[], None]:
    """Whole Hugging Face tensors for each worker, then its slices: what loading full weights into an engine does."""
    middle = huggingface_layout(shape, len(target.ranks))
    gather, cut = plan(source, middle, together(source, middle)), plan(middle, target, together(middle, target))
    held, whole, sliced = tensors(source, 1.0), tensors(middle, 0.0), tensors(target, 0.0)

    def run() -> None:
        execute_local(gather, held, whole)
        execute_local(cut, whole, sliced)

    return run


class Setup(NamedTuple):
    """What both ends of a wire agree on."""

    key: str
    verify: Verify
    slot_bytes: int
    runs: int


class Across(NamedTuple):
    """A sync between two processes: its report, and its cost, of the busier of the two."""

    report: SyncReport
    cost: Cost


def between_processes(made: ReshardPlan, verify: Verify, slot_bytes: int) -> Across:
    """The best of several syncs from a process with every source rank to this one with every target rank."""
    context = multiprocessing.get_context("spawn")
    key, (ours, theirs) = f"bench-{os.getpid()}-{uuid.uuid4().hex[:8]}", context.Pipe(duplex=False)
    setup = Setup(key, verify, slot_bytes, REPEATS + 2)
    process = context.Process(target=_send, args=(made.source.shape, setup, theirs))
    process.start()
    wire = SharedMemoryWire(key, slot_bytes=slot_bytes)
    try:
        sync = Exchange(plan=made, wire=wire, dtype=torch.float32, verify=verify, targets=tensors(made.target, 0.0))
        reports: list[SyncReport] = []
        costs = [cost_of(lambda number=number: reports.append(sync.run(number))) for number in range(setup.runs)]
        sender = ours.recv()
    finally:
        wire.close()
        process.join(10)
    # The first two wait for the sender to start and touch new pages.
    here = least(costs[2:])
    return Across(report=reports[-1], cost=Cost(here.wall, max(here.busy, sender)))


def plan_between(shape: ModelShape) -> ReshardPlan:
    """Two Megatron ranks, two vLLM workers, no GPU in common."""
    source, target = megatron_layout(shape, Parallel(tp=2)), vllm_layout(shape, tp=2)
    return plan(source, target, split(source, target))


def _send(shape: ModelShape, setup: Setup, busy: Connection) -> None:
    torch.set_num_threads(1)
    made, wire = plan_between(shape), SharedMemoryWire(setup.key, slot_bytes=setup.slot_bytes)
    sources = tensors(made.source, 1.0)
    sync = Exchange(plan=made, wire=wire, dtype=torch.float32, verify=setup.verify, sources=sources)
    costs = [cost_of(lambda number=number: sync.run(number)) for number in range(setup.runs)]
    busy.send(least(costs[2:]).busy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--verify", choices=("off", "sample", "full"), default="sample")
    parser.add_argument("--slot-bytes", type=int, default=4 << 20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = shape_of(options.hidden, options.layers)
    made = plan_between(shape)
    size = made.wire_bytes
    copied = plain_copy(size)
    here = Exchange(
        plan=made, sources=tensors(made.source, 1.0), targets=tensors(made.target, 0.0), dtype=torch.float32
    )
    in_process = best_of(lambda: here.run(1))
    gathered = best_of(gather_then_slice(shape, made.source, made.target))
    across = between_processes(made, options.verify, options.slot_bytes)
    whole_bytes = len(made.target.ranks) * huggingface_layout(shape).shards[0].elements * shape.item_bytes
    print(f"{size / 1e9:.3f} GB of weights, bound {across.report.bound / 1e9:.3f} GB, verify {options.verify}")
    for name, cost, moved in (
        ("plain copy", copied, size),
        ("ours, in process", in_process, size),
        (f"ours, shared memory ({across.report.messages} messages)", across.cost, across.report.bytes),
        ("gather whole tensors, then slice", gathered, whole_bytes),
    ):
        print(
            f"{name:40} {cost.wall * 1e3:8.1f} ms  {moved / 1e9:7.3f} GB moved  {size / 1e9 / cost.wall:6.2f} GB/s of "
            f"weights  {copied.wall / cost.wall:5.2f} of a plain copy, by processor time "
            f"{copied.busy / cost.busy:5.2f}"
        )
    print(f"gathering takes {gathered.wall / in_process.wall:.2f} of our time in process")
    return 0


if __name__ == "__main__":
    sys.exit(main())
