"""The start that every measured run shares: a tiny model, warmed up on chained arithmetic, made once.

Demonstrations always think, first without a slip; then, for the last quarter of the time, each step goes wrong with
probability 0.25 where there are more than two. So the model can do all, and does the short ones mostly and the long
ones seldom.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
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
from megatron_rl.data.tiny_model import tiny_tokenizer
from megatron_rl.objectives.likelihood import Likelihood
from tools.claims.shaped_model import TINY

DEMONSTRATIONS, ROWS = 20_000, 32
CLEAN = 0.75
"""Share of the warm-up in which no demonstration slips."""
MASTERED, SLIP = 2, 0.25
"""Up to this level demonstrations never slip; afterwards each step does with this probability."""
DEMONSTRATED = 1_000_003
"""Added to the seed of the demonstrations' problems, so that no pool of prompts shares its seed with them."""


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Which warm-up. Two with the same fields give the same weights."""

    seed: int
    steps: int = 1500

    def folder(self, root: Path) -> Path:
        """The Hugging Face folder of the warmed-up model, made where it is not there yet."""
        folder = root / f"start_{self.seed}_{self.steps}"
        if not (folder / "done.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._make(folder)
            (folder / "done.json").write_text(json.dumps({"seed": self.seed, "steps": self.steps}))
        return folder / "model"

    def _make(self, folder: Path) -> None:
        problems = list(Arithmetic().problems(DEMONSTRATIONS, seed=self.seed + DEMONSTRATED))
        fresh, _ = TINY.write(folder / "fresh", self.seed)
        groups.join_alone()
        groups.cut(self._settings, self.seed)
        actor = MegatronActor(self._settings, Origin(folder=fresh))
        tokenizer, rng = tiny_tokenizer(), np.random.default_rng(self.seed)
        for step in range(self.steps):
            update = actor.update(_lesson(problems, tokenizer, rng, step >= CLEAN * self.steps), Likelihood())
            if (step + 1) % 250 == 0:
                print(f"warm start {self.seed}: step {step + 1}/{self.steps}, loss {update.metrics['loss']:.3f}")
        weights.export(actor.model, folder / "model", like=fresh)
        actor.close()

    @property
    def _settings(self) -> ActorSettings:
        rate = LearningRate(peak=4e-3, schedule="linear", warmup=min(30, self.steps // 4), steps=self.steps, floor=0.05)
        return ActorSettings(
            precision=Precision(compute="fp32"),
            optimizer=OptimizerSettings(learning_rate=rate, betas=(0.9, 0.95), weight_decay=0.1),
            update=UpdateSettings(microbatch_tokens=8192),
        )


def _lesson(problems: list[Problem], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, late: bool) -> Batch:
    picked = [problems[place] for place in rng.integers(len(problems), size=ROWS)]
    slips = [SLIP if late and problem.level > MASTERED else 0.0 for problem in picked]
    texts = [demonstration(problem, rng, slip=slip) for problem, slip in zip(picked, slips, strict=True)]
    responses = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return Batch.of(
        {
            GROUP: list(range(ROWS)),
            PROMPT_TOKENS: tokenizer([problem.text for problem in picked], add_special_tokens=False)["input_ids"],
            TOKENS: responses,
            LOSS_MASK: [[1] * len(response) for response in responses],
        }
    )
