"""Prints what column algebra costs on a batch of 10,000 rollouts of 512 tokens, beside a plain copy of its bytes.

python tools/bench_batch.py [--rows 10000] [--tokens 512]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, GROUP, LOSS_MASK, REWARD, SAMPLER_LOGPROBS, TOKENS
from megatron_rl.batch.ragged import Ragged


def best_of(repeats: int, action: Callable[[], object]) -> float:
    def once() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


def make_batch(rows: int, tokens: int) -> Batch:
    length_B = torch.full((rows,), tokens)
    flat_T = torch.arange(rows * tokens)
    return Batch.of(
        {
            GROUP: torch.arange(rows) // 8,
            REWARD: torch.rand(rows),
            TOKENS: Ragged.from_lengths(flat_T.int(), length_B),
            SAMPLER_LOGPROBS: Ragged.from_lengths(-torch.rand(rows * tokens), length_B),
            LOSS_MASK: Ragged.from_lengths(torch.ones(rows * tokens, dtype=torch.uint8), length_B),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args(arguments)
    if options.rows < 1 or options.tokens < 1:
        parser.error(f"--rows and --tokens should be at least 1, got {options.rows} and {options.tokens}")
    batch = make_batch(options.rows, options.tokens)
    tokens = batch.ragged(TOKENS)
    order_B = torch.randperm(len(batch))
    advantage = Ragged(torch.rand(len(tokens.values)), tokens.offsets)
    flat_bytes = torch.zeros(batch.table.nbytes, dtype=torch.uint8)
    copy_s = best_of(5, flat_bytes.clone)
    actions = {
        "read a row column": lambda: batch[REWARD],
        "view a token column": lambda: batch[SAMPLER_LOGPROBS],
        "write a row column": lambda: batch.with_columns(baseline=torch.zeros(len(batch))),
        "write a token column": lambda: batch.with_columns({ADVANTAGE: advantage}),
        "number the groups": batch.group_index,
        "shuffle the rows": lambda: batch.take(order_B),
        "keep half the rows": lambda: batch.where(order_B % 2 == 0),
        "concat two batches": lambda: Batch.concat([batch, batch]),
    }
    print(
        f"{len(batch):,} rollouts, {batch.table.nbytes / 2**20:.0f} MiB; copying its bytes takes {copy_s * 1e3:.2f} ms"
    )
    for name, action in actions.items():
        seconds = best_of(5, action)
        print(f"{name:22s} {seconds * 1e3:9.3f} ms   {seconds / copy_s:7.3f} copies")


if __name__ == "__main__":
    main()
