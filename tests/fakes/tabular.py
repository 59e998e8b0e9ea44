"""A world small enough to reason about: prompts with three answers each, a policy that is a table of logits.

`TabularActor`, `TabularEngine` and `TabularSync` play the machines; the first answer of every prompt is the right one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    ANSWER,
    EXTRA,
    PREFIX,
    PROMPT_ID,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SEED,
    SOURCE,
    TOKENS,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.beside import finished
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import Evaluation, Objective, Policy, StepRecord, Update

ARMS = 3


class NumberedPrompts:
    """Prompts "p0", "p1", …; prompt i is the single token i."""

    def __init__(self, count: int) -> None:
        self.ids = [f"p{number}" for number in range(count)]

    def take(self, index: Sequence[int]) -> Batch:
        names = [self.ids[place] for place in index]
        return Batch.of(
            {
                PROMPT_ID: names,
                SOURCE: ["table"] * len(names),
                ANSWER: ["0"] * len(names),
                EXTRA: ["{}"] * len(names),
                PROMPT_TEXT: names,
                PROMPT_TOKENS: [[place] for place in index],
            }
        )


class TabularActor:
    """Follows advantage times score on a table of logits, with momentum, so that an optimizer has something to lose."""

    def __init__(self, prompts: int) -> None:
        self.logits = np.random.default_rng(0).normal(size=(prompts, ARMS))
        self.momentum = np.zeros_like(self.logits)
        self.closed = False

    def update(self, batch: Batch, objective: Objective) -> Update:
        tokens = batch.ragged(TOKENS)
        place_T = batch.ragged(PROMPT_TOKENS).values.long()[tokens.row_T].numpy()
        advantage_T = batch.ragged(ADVANTAGE).values.double().numpy()
        score = np.eye(ARMS)[tokens.values.long().numpy()] - self._law()[place_T]
        gradient = np.zeros_like(self.logits)
        np.add.at(gradient, place_T, advantage_T[:, None] * score)
        self.momentum = 0.9 * self.momentum + gradient
        self.logits = self.logits + 0.1 * self.momentum
        return Update(metrics={"gradient_norm": float(np.linalg.norm(gradient))}, steps=1)

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        return score_table(self._law(), batch)

    def save(self, folder: Path) -> Future[None]:
        folder.mkdir(parents=True)
        (folder / "table.json").write_text(json.dumps([self.logits.tolist(), self.momentum.tolist()]))
        return finished(None)

    def load(self, folder: Path) -> None:
        self.logits, self.momentum = (np.array(part) for part in json.loads((folder / "table.json").read_text()))

    def close(self) -> None:
        self.closed = True

    def _law(self) -> np.ndarray:
        return softmax(self.logits)


class TabularEngine:
    """Answers with one token drawn from its copy of the table."""

    sampling = Sampling()
    max_tokens = 1

    def __init__(self, prompts: int) -> None:
        self.law = np.full((prompts, ARMS), 1 / ARMS)
        self.version = -1

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        place_B = batch.ragged(PROMPT_TOKENS).values.long().numpy()
        uniform_B = np.array([np.random.default_rng(seed).random() for seed in batch.numbers(SEED).tolist()])
        arm_B = (uniform_B[:, None] > self.law[place_B].cumsum(1)).sum(1).clip(max=ARMS - 1)
        count = len(batch)
        one_B = torch.ones(count, dtype=torch.int64)
        rollouts = batch.without(PREFIX).with_columns(
            tokens=Ragged.from_lengths(torch.tensor(arm_B), one_B),
            loss_mask=Ragged.from_lengths(one_B, one_B),
            token_versions=Ragged.from_lengths(one_B * self.version, one_B),
            finish=["stop"] * count,
            status=["ok"] * count,
            error=[""] * count,
            version=one_B * self.version,
            response_text=[str(arm) for arm in arm_B],
        )
        return rollouts.with_columns(sampler_logprobs=score_table(self.law, rollouts))

    def score(self, batch: Batch) -> Ragged:
        return score_table(self.law, batch)

    def close(self) -> None:
        self.law = np.full_like(self.law, np.nan)


class TabularSync:
    metrics: ClassVar[dict[str, float]] = {}

    def __init__(self, actor: TabularActor, engine: TabularEngine) -> None:
        self.actor, self.engine = actor, engine

    def publish(self, version: int) -> int:
        self.engine.law, self.engine.version = softmax(self.actor.logits), version
        return version


class FirstAnswerIsRight:
    """A judge that compares the response with the answer."""

    def judge(self, batch: Batch) -> Batch:
        right = [
            float(text == answer)
            for text, answer in zip(batch.strings(RESPONSE_TEXT), batch.strings(ANSWER), strict=True)
        ]
        verdict = ["right" if value else "wrong" for value in right]
        return batch.with_columns(
            reward=right,
            correct=[int(value) for value in right],
            verdict=verdict,
            extracted=batch.strings(RESPONSE_TEXT),
        )


class Recorder:
    """Telemetry that keeps everything it is told."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.batches: list[Batch] = []
        self.evaluations: list[Evaluation] = []
        self.events: list[str] = []

    def start(self, step: int, steps: int) -> None:
        self.events.append(f"start {step}/{steps}")

    def wave(self, done: int, total: int, tokens: int) -> None:
        self.events.append(f"wave {done}/{total} {tokens}")

    def step(self, record: StepRecord, batch: Batch) -> None:
        self.records.append(record)
        self.batches.append(batch)

    def measuring(self) -> None:
        self.events.append("measuring")

    def evaluation(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def close(self, reason: str) -> None:
        self.events.append(f"close {reason}")


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def score_table(law: np.ndarray, batch: Batch) -> Ragged:
    tokens = batch.ragged(TOKENS)
    place_T = batch.ragged(PROMPT_TOKENS).values.long()[tokens.row_T].numpy()
    return Ragged(torch.tensor(np.log(law[place_T, tokens.values.long().numpy()])).float(), tokens.offsets)
