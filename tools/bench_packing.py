"""Prints what packing saves: packed against padded tokens per second, and how evenly data ranks are loaded.

    python tools/bench_packing.py [--rows 64] [--sequences 512]

Lengths are log-normal, as responses are: most short, a few near the budget. Padded means what a batch matrix would
compute: every response filled up to the longest with masked tokens, on the same actor. Only real tokens are counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

from megatron_rl.actor import groups
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.microbatch import Cost, Limits, plan
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import LOSS_MASK, PROMPT_TOKENS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.objectives.likelihood import Likelihood
from tools.bench_actor import write_model
from tools.plain_decoder import Sizes

SEVEN_BILLION = Cost(linear=7e9, quadratic=28 * 3584)
PROMPT = 8


def long_tail(count: int, typical: int, longest: int, seed: int = 0) -> list[int]:
    draw = np.random.default_rng(seed)
    lengths: list[int] = np.clip(np.exp(draw.normal(np.log(typical), 1.0, count)), 4, longest).astype(int).tolist()
    return lengths


def packed_and_padded(lengths: list[int]) -> tuple[Batch, Batch]:
    """The same rollouts, with responses as long as they are and as long as the longest."""
    draw = np.random.default_rng(1)
    real_B, full_B = torch.tensor(lengths), torch.full((len(lengths),), max(lengths))

    def batch(length_B: torch.Tensor) -> Batch:
        within_T = torch.arange(int(length_B.sum())) - torch.repeat_interleave(length_B.cumsum(0) - length_B, length_B)
        live_T = within_T < torch.repeat_interleave(real_B, length_B)
        tokens_T = torch.as_tensor(draw.integers(0, 64, len(live_T))).int()
        return Batch.of(
            {
                PROMPT_TOKENS: [[1] * PROMPT] * len(lengths),
                TOKENS: Ragged.from_lengths(tokens_T, length_B),
                LOSS_MASK: Ragged.from_lengths(live_T.to(torch.uint8), length_B),
            }
        )

    return batch(real_B), batch(full_B)


def seconds(actor: MegatronActor, batch: Batch) -> float:
    start = time.perf_counter()
    actor.update(batch, Likelihood())
    return time.perf_counter() - start


def speeds(rows: int, typical: int = 96) -> list[str]:
    """Lines about what is computed; the process has joined as the only rank."""
    torch.set_num_threads(1)
    settings = ActorSettings(precision=Precision(compute="fp32"), update=UpdateSettings(microbatch_tokens=4096))
    groups.cut(settings)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), Sizes())
        actor = MegatronActor(settings, Origin(folder=Path(folder)))
    lengths = long_tail(rows, typical, longest=1024)
    real = sum(lengths) + PROMPT * rows
    batches = dict(zip(("packed", "padded"), packed_and_padded(lengths), strict=True))
    for batch in batches.values():
        seconds(actor, batch)
    best = {name: min(seconds(actor, batch) for _ in range(3)) for name, batch in batches.items()}
    lines = [f"{rows} rollouts, {real} real tokens, longest {max(lengths)}"]
    for name, batch in batches.items():
        computed = len(batch.ragged(TOKENS).values) + PROMPT * rows
        speed = real / best[name]
        lines.append(f"{name:8s} {speed:10,.0f} real tokens/s   {computed / real:5.2f} computed per real token")
    return [*lines, f"packed is {best['padded'] / best['packed']:.1f} times as fast"]


def balance(count: int) -> list[str]:
    """Lines about what is planned."""
    lengths = long_tail(count, typical=2000, longest=16384)
    lines = [f"{count} sequences of up to {max(lengths)} tokens, micro-batches of at most 32768, costs of a 7B model"]
    for ranks in (1, 2, 4, 8, 16, 32):
        microbatches = plan(lengths, Limits(tokens=32768, ranks=ranks, token_multiple=8, cost=SEVEN_BILLION))
        processed = microbatches.processed / sum(lengths)
        each = len(microbatches.rows[0])
        lines.append(
            f"{ranks:3d} data ranks: {each:3d} micro-batches each, processed/real {processed:.4f}, "
            f"imbalance {microbatches.imbalance:.3%}"
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="rollouts that are trained on")
    parser.add_argument("--sequences", type=int, default=512, help="sequences that are only planned")
    options = parser.parse_args(arguments)
    print(*balance(options.sequences), sep="\n")
    groups.join_alone()
    print(*speeds(options.rows), sep="\n")
    groups.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
