"""Held-out accuracy: pass@1, avg@k, maj@k and pass@k by source, each with its interval.

An answer that failed, of which the engine said nothing, is no wrong one: it is counted as `failed` and left out. pass@1
is of the answers that came back, pass@k and maj@k of the prompts of which all k did; `short_prompts` are the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from megatron_rl.accounting import rollouts_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, ERROR, EXTRACTED, FINISH, PROMPT_ID, SOURCE, TOKENS
from megatron_rl.drawing import requests
from megatron_rl.failures import lived
from megatron_rl.ops.accuracy import estimate, majority, pass_at
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import Context, Evaluation, Judge, Prompts, RolloutEngine


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How held-out prompts are asked. Every evaluation of a run uses the same seeds."""

    samples: Annotated[int, Ge(1)] = 1
    """Rollouts of each prompt: pass@1 is their mean, pass@k and maj@k are of all of them."""

    temperature: Annotated[float, Ge(0), Lt(math.inf)] = 1.0
    """0 takes the likeliest token."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Keeps the likeliest tokens that together reach this mass."""

    top_k: Annotated[int, Ge(0)] = 0
    """Keeps this many of the likeliest tokens; 0 keeps all."""

    @property
    def law(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """An `Evaluator` that asks every prompt `samples` times, with the same seeds at every evaluation."""

    prompts: Prompts
    engine: RolloutEngine
    judge: Judge
    samples: int
    sampling: Sampling
    seed: int

    def evaluate(self, step: int) -> Evaluation:
        return Evaluation(step=step, metrics=measure(self.answer(), self.samples))

    def answer(self) -> Batch:
        """Every prompt's judged rollouts."""
        context = Context(step=0, version=0, seed=self.seed, machines={"prompts": self.prompts})
        picks = [(0, place) for place in range(len(self.prompts.ids))]
        asked = requests(context, picks, self.samples, first_group=0, phase="evaluate")
        return self.judge.judge(rollouts_of(self.engine, asked, self.sampling))


def measure(batch: Batch, samples: int) -> dict[str, float]:
    """Measures by source with `/low` and `/high` beside them: {"toy/pass@1": .94, "toy/pass@1/low": .92, …}.

    RuntimeError where no answer of a source came back.
    """
    metrics: dict[str, float] = {}
    sources = batch.strings(SOURCE)
    for source in sorted(set(sources)):
        rows = batch.where(torch.tensor([name == source for name in sources]))
        living = rows.where(lived(rows))
        if not len(living):
            raise RuntimeError(
                f"none of the {len(rows)} answers to the held-out prompts of '{source}' came to an end; the first: "
                f"{rows.strings(ERROR)[0]}"
            )
        prompts, failed = len(set(rows.strings(PROMPT_ID))), len(rows) - len(living)
        found = {**_measure_one(living, samples, prompts), "failed": float(failed)}
        metrics |= {f"{source}/{name}": value for name, value in found.items()}
    return metrics


def _measure_one(batch: Batch, samples: int, prompts: int) -> dict[str, float]:
    """Of answers that all came back, to so many prompts or fewer."""
    prompt_B = batch.index(PROMPT_ID)
    scores: dict[str, Tensor] = {"pass@1": pass_at(1, batch.numbers(CORRECT), prompt_B)}
    whole_G = torch.bincount(prompt_B) >= samples
    whole = batch.where(whole_G[prompt_B])
    if samples > 1 and len(whole):
        correct_W, prompt_W = whole.numbers(CORRECT), whole.index(PROMPT_ID)
        scores[f"pass@{samples}"] = pass_at(samples, correct_W, prompt_W)
        scores[f"maj@{samples}"] = majority(whole.strings(EXTRACTED), correct_W, prompt_W)
    metrics = {name: value for measure, score_G in scores.items() for name, value in _with_interval(measure, score_G)}
    stopped = [finish == "stop" for finish in batch.strings(FINISH)]
    return metrics | {
        "length_mean": float(batch.ragged(TOKENS).length_B.double().mean()),
        "truncated_share": 1 - sum(stopped) / len(stopped),
        "short_prompts": float(prompts - int(whole_G.sum())),
    }


def _with_interval(name: str, score_G: Tensor) -> Sequence[tuple[str, float]]:
    found = estimate(score_G)
    return ((name, found.mean), (f"{name}/low", found.low), (f"{name}/high", found.high))
