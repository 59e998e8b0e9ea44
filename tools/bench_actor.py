"""Prints tokens per second of the actor beside plain PyTorch: same tiny model, data, loss and optimizer, one thread.

    python tools/bench_actor.py [--rows 32] [--steps 30] [--even] [--profile]

The actor packs and plain PyTorch pads to the longest; tokens are those of prompts and responses, padding never counted.
Rounds of both alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

from megatron_rl.actor import groups
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.objectives.likelihood import Likelihood
from tools.plain_decoder import PlainDecoder, Sizes

BETAS, DECAY, CLIP, RATE = (0.9, 0.95), 0.1, 1.0, 1e-3
ROUNDS = 5
PLAIN, OURS = "plain PyTorch, padded", "actor, distributed optimizer"


def random_batch(rows: int, seed: int, vocabulary: int, even: bool) -> Batch:
    """Lengths as in chained arithmetic: prompts of 10 to 42 tokens, responses of 8 to 47; or, even, their means."""
    draw = np.random.default_rng(seed)

    def lists(shortest: int, longest: int) -> Ragged:
        mean = (shortest + longest) // 2
        length_B = torch.as_tensor(np.full(rows, mean) if even else draw.integers(shortest, longest + 1, rows))
        return Ragged.from_lengths(torch.as_tensor(draw.integers(0, vocabulary, int(length_B.sum()))).int(), length_B)

    return Batch.of({PROMPT_TOKENS: lists(10, 42), TOKENS: lists(8, 47)})


def tokens_of(batch: Batch) -> int:
    return len(batch.ragged(PROMPT_TOKENS).values) + len(batch.ragged(TOKENS).values)


def padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the mask of responses, one row a rollout."""
    whole = [
        (prompt.long(), response.long())
        for prompt, response in zip(batch.ragged(PROMPT_TOKENS).rows(), batch.ragged(TOKENS).rows(), strict=True)
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    tokens_BS = pad([torch.cat(pair) for pair in whole], batch_first=True)
    live_BS = pad(
        [torch.cat([torch.zeros(len(p)), torch.ones(len(r))]) for p, r in whole],
        batch_first=True,
    )
    return tokens_BS, live_BS


def write_model(folder: Path, sizes: Sizes) -> dict[str, torch.Tensor]:
    weights = sizes.random_weights()
    (folder / "config.json").write_text(json.dumps(sizes.config))
    save_file(weights, folder / "model.safetensors")
    return weights


def plain_step(model: PlainDecoder) -> Callable[[Batch], float]:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}],
        lr=RATE,
        betas=BETAS,
    )

    def step(batch: Batch) -> float:
        loss = model.loss(*padded(batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    return step


def actor_step(folder: Path, distributed: bool) -> Callable[[Batch], float]:
    settings = ActorSettings(
        precision=Precision(compute="fp32"),
        optimizer=OptimizerSettings(
            learning_rate=LearningRate(peak=RATE), betas=BETAS, weight_decay=DECAY, clip=CLIP, distributed=distributed
        ),
    )
    actor = MegatronActor(settings, Origin(folder=folder))
    objective = Likelihood()
    return lambda batch: actor.update(batch, objective).metrics["loss"]


def timed(step: Callable[[Batch], float], batches: list[Batch]) -> float:
    """Tokens per second."""
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return sum(tokens_of(batch) for batch in batches) / (time.perf_counter() - start)


def compare(rows: int, steps: int, even: bool, profiled: bool = False) -> list[str]:
    """The lines of the table, and of the profile where one is asked for; the process has joined as the only rank."""
    torch.set_num_threads(1)
    groups.cut(ActorSettings())
    sizes = Sizes()
    with tempfile.TemporaryDirectory() as written:
        weights = write_model(Path(written), sizes)
        contenders = {
            PLAIN: plain_step(PlainDecoder(sizes, weights)),
            OURS: actor_step(Path(written), distributed=True),
            "actor, plain optimizer": actor_step(Path(written), distributed=False),
        }
    batches = [random_batch(rows, seed, sizes.vocabulary, even) for seed in range(steps)]
    for step in contenders.values():
        timed(step, batches[:3])
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, step in contenders.items():
            speeds[name].append(timed(step, batches))
    lines = [f"{sum(weight.numel() for weight in weights.values()):,} parameters, {rows} rollouts a step, 1 thread"]
    for name, rounds in speeds.items():
        ratio = statistics.median(one / other for one, other in zip(rounds, speeds[PLAIN], strict=True))
        lines.append(f"{name:30s} {statistics.median(rounds):10,.0f} tokens/s  {ratio:.2f} of plain")
    if profiled:
        with torch.profiler.profile() as profile:
            timed(contenders[OURS], batches[:10])
        lines.append(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32, help="rollouts a step")
    parser.add_argument("--steps", type=int, default=30, help="steps a round; five rounds")
    parser.add_argument("--even", action="store_true", help="rollouts of one length: nothing for packing to save")
    parser.add_argument("--profile", action="store_true", help="also print where the actor's time goes")
    options = parser.parse_args(arguments)
    groups.join_alone()
    print(*compare(options.rows, options.steps, options.even, options.profile), sep="\n")
    groups.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
