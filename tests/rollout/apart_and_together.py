"""A program: rollouts of one batch against the same rollouts permuted, split and resumed; prints how many rows differ.

    python -m tests.rollout.apart_and_together FOLDER THREADS

The number of threads is a matter of the whole process, hence a program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PREFIX_LOGPROBS, SAMPLER_LOGPROBS, TOKENS
from tests.rollout.opening import asked, open_embedded, random_prompts

COUNT = 24
LONGEST = 300
"""Long enough for caches of several blocks, and for activations that threads share."""
CROWDS = (1, 2, 9, 10, 11, 18, 19)
"""Batches and sizes of batches whose shares of rows among threads leave a few over."""


def written(rollouts: Batch) -> list[tuple[list[int], list[float]]]:
    tokens, logprobs = rollouts.ragged(TOKENS).rows(), rollouts.ragged(SAMPLER_LOGPROBS).rows()
    return [(one.tolist(), law.tolist()) for one, law in zip(tokens, logprobs, strict=True)]


def differences(folder: Path) -> dict[str, int]:
    prompts = random_prompts(COUNT, longest=LONGEST)
    engine = open_embedded(folder, max_tokens=12)
    together = engine.generate(asked(prompts))
    expected = written(together)
    found = {"scored": sum(map(differs, engine.score(together).rows(), expected))}
    generator = torch.Generator().manual_seed(0)
    for crowd in CROWDS:
        order = torch.randperm(COUNT, generator=generator)[:crowd].tolist()
        apart = open_embedded(folder, max_tokens=12, rows=max(2, crowd), prefill_tokens=64 * crowd)
        mine = [expected[row] for row in order]
        permuted = apart.generate(asked([prompts[row] for row in order], seeds=order))
        found[f"{crowd} permuted"] = sum(map(tuple.__ne__, written(permuted), mine))
        cuts = [(row + crowd) % len(tokens) for row, (tokens, _) in zip(order, mine, strict=True)]
        heads = [tokens[:cut] for cut, (tokens, _) in zip(cuts, mine, strict=True)]
        known = [logprobs[:cut] for cut, (_, logprobs) in zip(cuts, mine, strict=True)]
        resumed = asked([prompts[row] for row in order], seeds=order, prefixes=heads)
        resumed = apart.generate(resumed.with_columns({PREFIX_LOGPROBS: known}))
        found[f"{crowd} resumed"] = sum(map(tuple.__ne__, written(resumed), mine))
    return found


def differs(score: torch.Tensor, expected: tuple[list[int], list[float]]) -> bool:
    return score.tolist() != expected[1]


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    found = differences(Path(sys.argv[1]))
    print(f"rows that differ with {torch.get_num_threads()} threads:", {name: n for name, n in found.items() if n})


if __name__ == "__main__":
    main()
