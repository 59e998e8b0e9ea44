"""Prints what a weight sync costs beside a plain copy of its bytes and beside gathering whole tensors to slice them.

    python tools/bench_sync.py [--hidden 1024] [--layers 8] [--verify sample] [--slot-bytes 4194304]

From two Megatron ranks to two vLLM workers: all in one process, then between two processes over shared memory.
"""

import argparse
import multiprocessing
import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence

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


def best_of(action: Callable[[], object]) -> float:
    """Seconds of the fastest run, the first left out: it touches new pages."""

    def once() -> float:
        begun = time.perf_counter()
        action()
        return time.perf_counter() - begun

    return min(once() for _ in range(REPEATS + 1))


def plain_copy(size: int) -> float:
    """Seconds to copy this many bytes from one place to another."""
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


def between_processes(made: ReshardPlan, verify: Verify, slot_bytes: int) -> SyncReport:
    """The fastest of several syncs from a process with every source rank to this one with every target rank."""
    key = f"bench-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    process = multiprocessing.get_context("spawn").Process(
        target=_send, args=(made.source.shape, key, verify, slot_bytes)
    )
    process.start()
    wire = SharedMemoryWire(key, slot_bytes=slot_bytes)
    try:
        sync = Exchange(plan=made, wire=wire, dtype=torch.float32, verify=verify, targets=tensors(made.target, 0.0))
        reports = [sync.run(version) for version in range(REPEATS + 2)]
    finally:
        wire.close()
        process.join(10)
    # The first two wait for the sender to start and touch new pages.
    return min(reports[2:], key=lambda report: report.seconds)


def plan_between(shape: ModelShape) -> ReshardPlan:
    """Two Megatron ranks, two vLLM workers, no GPU in common."""
    source, target = megatron_layout(shape, Parallel(tp=2)), vllm_layout(shape, tp=2)
    return plan(source, target, split(source, target))


def _send(shape: ModelShape, key: str, verify: Verify, slot_bytes: int) -> None:
    torch.set_num_threads(1)
    made, wire = plan_between(shape), SharedMemoryWire(key, slot_bytes=slot_bytes)
    sync = Exchange(plan=made, wire=wire, dtype=torch.float32, verify=verify, sources=tensors(made.source, 1.0))
    for version in range(REPEATS + 2):
        sync.run(version)


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
    print(f"{size / 1e9:.3f} GB of weights, bound {across.bound / 1e9:.3f} GB, verify {options.verify}")
    for name, seconds, moved in (
        ("plain copy", copied, size),
        ("ours, in process", in_process, size),
        (f"ours, shared memory ({across.messages} messages)", across.seconds, across.bytes),
        ("gather whole tensors, then slice", gathered, whole_bytes),
    ):
        rate = size / 1e9 / seconds
        print(
            f"{name:40} {seconds * 1e3:8.1f} ms  {moved / 1e9:7.3f} GB moved  {rate:6.2f} GB/s of weights  "
            f"{copied / seconds:5.2f} of a plain copy"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
