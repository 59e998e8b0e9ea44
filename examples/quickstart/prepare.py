"""Makes what the quickstart trains on: prompts, a tiny model, and its supervised warm start by the real actor.

    python examples/quickstart/prepare.py [--folder runs/quickstart-data] [--seed 0] [--steps 1500]

The model first sees demonstrations that think, then mostly ones that only guess: it can think, but hardly does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from megatron_rl.actor import groups, weights
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, LOSS_MASK, PROMPT_TOKENS, TOKENS
from megatron_rl.data.arithmetic import Arithmetic, Problem, demonstration
from megatron_rl.data.prompt_file import write_prompts
from megatron_rl.data.tiny_model import tiny_tokenizer, write_tiny_model
from megatron_rl.objectives.likelihood import Likelihood

TRAIN, HELD_OUT, DEMONSTRATIONS = 8192, 256, 20_000
ROWS = 32
THINKING = 0.8
"""Share of the warm start in which every demonstration thinks."""
GUESS, SLIP = 0.75, 0.1
"""Afterwards: share of demonstrations that only guess, and of steps that go wrong."""


def write_problems(folder: Path, seed: int) -> list[Problem]:
    """Writes the prompt files; returns other problems, for demonstrations."""
    held_out = list(Arithmetic().problems(HELD_OUT, seed=seed + 1_000_003))
    kept = frozenset(problem.text for problem in held_out)
    train = list(Arithmetic().problems(TRAIN, seed=seed, without=kept))
    write_prompts(folder / "held_out.parquet", (problem.prompt for problem in held_out))
    write_prompts(folder / "train.parquet", (problem.prompt for problem in train))
    return list(Arithmetic().problems(DEMONSTRATIONS, seed=seed + 2_000_003, without=kept))


def settings(steps: int) -> ActorSettings:
    rate = LearningRate(peak=4e-3, schedule="linear", warmup=min(30, steps // 4), steps=steps, floor=0.05)
    return ActorSettings(
        precision=Precision(compute="fp32"),
        optimizer=OptimizerSettings(learning_rate=rate, betas=(0.9, 0.95), weight_decay=0.1),
        update=UpdateSettings(microbatch_tokens=8192),
    )


def lesson(problems: list[Problem], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, late: bool) -> Batch:
    """Demonstrations of randomly picked problems."""
    picked = [problems[place] for place in rng.integers(len(problems), size=ROWS)]
    guess, slip = (GUESS, SLIP) if late else (0.0, 0.0)
    texts = [demonstration(problem, rng, guess, slip) for problem in picked]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return Batch.of(
        {
            GROUP: list(range(ROWS)),
            PROMPT_TOKENS: tokenizer([problem.text for problem in picked], add_special_tokens=False)["input_ids"],
            TOKENS: responses,
            LOSS_MASK: [[1] * len(response) for response in responses],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart-data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    recipe = {"seed": options.seed, "steps": options.steps}
    done = options.folder / "recipe.json"
    if done.exists() and json.loads(done.read_text()) == recipe:
        print(f"{options.folder} is there already")
        return
    started = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    problems = write_problems(options.folder, options.seed)
    fresh = write_tiny_model(options.folder / "fresh", options.seed)
    groups.join_alone()
    groups.cut(settings(options.steps), options.seed)
    actor = MegatronActor(settings(options.steps), Origin(folder=fresh))
    tokenizer, rng = tiny_tokenizer(), np.random.default_rng(options.seed)
    for step in range(options.steps):
        update = actor.update(lesson(problems, tokenizer, rng, step >= THINKING * options.steps), Likelihood())
        if (step + 1) % 250 == 0:
            print(f"warm start: step {step + 1}/{options.steps}, loss {update.metrics['loss']:.3f}", flush=True)
    weights.export(actor.model, options.folder / "model", like=fresh)
    actor.close()
    done.write_text(json.dumps(recipe))
    print(f"{options.folder} made in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; `make quickstart` begins again")
