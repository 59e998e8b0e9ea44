"""GRPO in one file, on the pieces that the package is made of: read it from top to bottom.

    python examples/grpo_in_one_file.py [--steps 60] [--prompts 16] [--samples 8] [--seed 0]

A tiny language model has seen sums of two digits whose results were mostly wrong, so its own answers mostly are, too.
Nobody shows it better ones. It answers each question several times, every answer is only marked right or wrong, and
answers better than their neighbours are made likelier. That is GRPO (arXiv 2402.03300), and all of it stands below:

    ask        draws questions, each to be answered K times      one row of the batch is one rollout
    answer     the engine writes the rollouts                    tokens, and the log-probability each was drawn with
    mark       a reward for every rollout                        1 right, 0 wrong
    compare    a rollout against the others of its group         advantage = (reward - mean) / deviation
    learn      the actor takes optimizer steps                   likelier or less likely, within a trust region
    publish    the engine gets the new weights                   and the next step begins

`megatron-rl train` runs the same six over any number of GPUs, with each of them replaceable by a line of YAML; here
they are called by hand, in one process, without configuration. Half a minute on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_rl.actor import groups, weights
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.recipe import LearningRate, OptimizerSettings, UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.assemble import blueprint_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ANSWER,
    FINISH,
    GROUP,
    OLD_LOGPROBS,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    REWARD,
    SAMPLER_LOGPROBS,
    SEED,
    TOKENS,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.data.arithmetic import END
from megatron_rl.data.tiny_model import tiny_tokenizer, write_tiny_model
from megatron_rl.data.tokenizer import decoder
from megatron_rl.objectives.clipped import Clipped
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.ops.segments import group_moments
from megatron_rl.ports import Actor, RolloutEngine
from megatron_rl.processes import in_process_sync
from megatron_rl.rollout.embedded import Embedded, EmbeddedEngine
from megatron_rl.rollout.settings import SamplingSettings
from megatron_rl.rollout.vocabulary import Vocabulary, end_tokens

CARELESS = 0.6
"""Share of the demonstrations of the warm start whose answer is any digit."""
EPS = 1e-6
"""Keeps the advantage finite where a group's rewards are all the same; it is zero there."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line chooses."""

    steps: int = 60
    prompts: int = 16
    """Questions of one step: groups."""
    samples: int = 8
    """Answers to each: rollouts of a group."""
    warm_steps: int = 400
    """Supervised steps before reinforcement begins."""
    rate: float = 3e-4
    """Learning rate of the reinforcement."""
    seed: int = 0
    threads: int = 1
    folder: Path | None = None
    """Keeps `start` and `trained`, Hugging Face folders of the model before and after; nothing is kept without it."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a step says of itself."""

    reward: float
    mixed: float
    """Share of the groups with right and wrong answers. Only these teach anything."""
    length: float
    gap: float
    """Mean difference between what engine and actor think of the same tokens; near zero, or something is broken."""
    clipped: float
    """Share of the tokens that had left the trust region."""
    seconds: float


# The task -----------------------------------------------------------------------------------------------------------


class Sum(NamedTuple):
    """What is asked, modulo 10: `<q> 7 + 8 ? <think>` has the answer `5`."""

    left: int
    right: int

    @property
    def text(self) -> str:
        return f"<q> {self.left} + {self.right} ? <think>"

    @property
    def answer(self) -> str:
        return str((self.left + self.right) % 10)


def draw(count: int, rng: np.random.Generator) -> list[Sum]:
    """Sums to ask."""
    return [Sum(int(rng.integers(10)), int(rng.integers(10))) for _ in range(count)]


# 1. ask -------------------------------------------------------------------------------------------------------------


def ask(sums: Sequence[Sum], tokenizer: PreTrainedTokenizerFast, samples: int, rng: np.random.Generator) -> Batch:
    """One row per rollout to be made. A row's SEED is all its randomness, so a step can be repeated exactly."""
    repeated = [each for each in sums for _ in range(samples)]
    return Batch.of(
        {
            GROUP: [group for group in range(len(sums)) for _ in range(samples)],
            PROMPT_TOKENS: tokenizer([each.text for each in repeated], add_special_tokens=False)["input_ids"],
            ANSWER: [each.answer for each in repeated],
            SEED: rng.integers(2**62, size=len(repeated)),
        }
    )


# 2. answer ----------------------------------------------------------------------------------------------------------


def open_engine(folder: Path, tokenizer: PreTrainedTokenizerFast) -> EmbeddedEngine:
    """The engine that writes rollouts, without weights as yet: they come from the actor, at every publish."""
    vocabulary = Vocabulary(decode=decoder(tokenizer), end=end_tokens(folder))
    blueprint = blueprint_of(weights.read_config(folder))
    return Embedded().open(blueprint, vocabulary, SamplingSettings(temperature=1.0, max_tokens=4), torch.float32)


def answer(engine: RolloutEngine, asked: Batch) -> Batch:
    """Writes TOKENS, the SAMPLER_LOGPROBS they were drawn with, RESPONSE_TEXT, FINISH and the LOSS_MASK."""
    return engine.generate(asked)


# 3. mark ------------------------------------------------------------------------------------------------------------


def mark(rollouts: Batch) -> Batch:
    """REWARD 1 where the response came to its end with the right number, else 0. How it got there is not looked at."""
    said = zip(rollouts.strings(RESPONSE_TEXT), rollouts.strings(FINISH), rollouts.strings(ANSWER), strict=True)
    reward_B = [float(finish == "stop" and text.endswith(f"<answer> {truth}")) for text, finish, truth in said]
    return rollouts.with_columns(reward=reward_B)


# 4. compare ---------------------------------------------------------------------------------------------------------


def compare(marked: Batch) -> Batch:
    """ADVANTAGE of every token: how much better its rollout was than its group, in the group's standard deviations.

    The group's own mean is the baseline: no critic has to be learnt. A group that agrees has nothing to say.
    """
    reward_B, group_B = marked.numbers(REWARD), marked.group_index()
    _, mean_G, variance_G = group_moments(reward_B, group_B)
    advantage_B = (reward_B - mean_G[group_B]) / (variance_G[group_B].sqrt() + EPS)
    tokens = marked.ragged(TOKENS)
    advantage_T = torch.repeat_interleave(advantage_B, tokens.length_B).float()
    return marked.with_columns(advantage=Ragged(advantage_T, tokens.offsets))


# 5. learn -----------------------------------------------------------------------------------------------------------


def settings(rate: LearningRate, minibatches: int = 1) -> ActorSettings:
    """How the Megatron actor trains; `ActorSettings(tp=2, pp=2, …)` would cut it over processes."""
    return ActorSettings(
        precision=Precision(compute="fp32"),
        optimizer=OptimizerSettings(learning_rate=rate, betas=(0.9, 0.95), weight_decay=0.0),
        update=UpdateSettings(steps=minibatches, microbatch_tokens=8192),
    )


def open_actor(folder: Path, chosen: ActorSettings, seed: int) -> MegatronActor:
    """The one rank of an actor, in this process."""
    groups.join_alone()
    groups.cut(chosen, seed)
    return MegatronActor(chosen, Origin(folder=folder))


def learn(actor: Actor, compared: Batch) -> tuple[Batch, float]:
    """Two optimizer steps, each on half of the groups; returns the batch with OLD_LOGPROBS, and the clipped share.

    The objective is the mean over tokens of -min(ratio × advantage, clip(ratio, 0.8, 1.2) × advantage), where ratio is
    the token's probability now over that of OLD_LOGPROBS. In the second step the policy is no longer the one that
    wrote the rollouts: a token that has already moved by a fifth is not pushed any further.
    """
    scored = compared.with_columns(old_logprobs=actor.score(compared))
    update = actor.update(scored, Clipped(low=0.2, high=0.2))
    return scored, update.metrics["clip_fraction"]


# 6. publish happens in `train`, by the plan that says which slice of the actor's tensors is which of the engine's ----


def warm_start(folder: Path, tokenizer: PreTrainedTokenizerFast, options: Options) -> Path:
    """Writes the model that RL begins with: supervised on careless answers, it knows the form of an answer."""
    fresh, rng = write_tiny_model(folder / "fresh", options.seed), np.random.default_rng(options.seed + 1)
    rate = LearningRate(peak=1e-3, warmup=options.warm_steps // 20, schedule="linear", steps=options.warm_steps)
    actor = open_actor(fresh, settings(rate), options.seed)
    for _ in range(options.warm_steps):
        sums = draw(64, rng)
        shown = [str(rng.integers(10)) if rng.random() < CARELESS else each.answer for each in sums]
        said = tokenizer([f"<answer> {digit} {END}" for digit in shown], add_special_tokens=False)["input_ids"]
        lesson = ask(sums, tokenizer, samples=1, rng=rng)
        actor.update(lesson.with_columns(tokens=said, loss_mask=[[1] * len(each) for each in said]), Likelihood())
    weights.export(actor.model, folder / "start", like=fresh)
    actor.close()
    return folder / "start"


def train(options: Options, folder: Path) -> list[Told]:
    """The loop."""
    torch.set_num_threads(options.threads)
    tokenizer, rng = tiny_tokenizer(), np.random.default_rng(options.seed)
    start = warm_start(folder, tokenizer, options)
    actor = open_actor(start, settings(LearningRate(peak=options.rate), minibatches=2), options.seed)
    engine = open_engine(start, tokenizer)
    sync = in_process_sync(actor, engine)
    history: list[Told] = []
    print("step  reward  mixed groups  length  engine-actor gap  clipped  seconds")
    sync.publish(version=0)
    for step in range(options.steps):
        began = time.perf_counter()
        asked = ask(draw(options.prompts, rng), tokenizer, options.samples, rng)
        batch = compare(mark(answer(engine, asked)))
        batch, clipped = learn(actor, batch)
        sync.publish(version=step + 1)
        history.append(told(batch, clipped, time.perf_counter() - began))
        if step % max(1, options.steps // 20) == 0 or step == options.steps - 1:
            show(step, history[-1])
    weights.export(actor.model, folder / "trained", like=start)
    engine.close()
    actor.close()
    return history


def told(batch: Batch, clipped: float, seconds: float) -> Told:
    gap_T: Tensor = batch.ragged(OLD_LOGPROBS).values - batch.ragged(SAMPLER_LOGPROBS).values
    _, _, variance_G = group_moments(batch.numbers(REWARD), batch.group_index())
    return Told(
        reward=float(batch.numbers(REWARD).mean()),
        mixed=float((variance_G > 0).double().mean()),
        length=float(batch.ragged(TOKENS).length_B.double().mean()),
        gap=float(gap_T.abs().mean()),
        clipped=clipped,
        seconds=seconds,
    )


def show(step: int, line: Told) -> None:
    print(
        f"{step + 1:4d}  {line.reward:6.3f}  {line.mixed:12.2f}  {line.length:6.1f}  {line.gap:16.1e}  "
        f"{line.clipped:7.3f}  {line.seconds:7.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> list[Told]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("steps", "prompts", "samples", "warm_steps", "seed", "threads"):
        default = getattr(Options, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"{default} by default")
    parser.add_argument("--rate", type=float, default=Options.rate, help=f"learning rate, {Options.rate} by default")
    parser.add_argument("--folder", type=Path, help="keeps the models before and after, as Hugging Face folders")
    options = Options(**vars(parser.parse_args(arguments)))
    with tempfile.TemporaryDirectory() as room:
        return train(options, options.folder or Path(room))


if __name__ == "__main__":
    main()
