"""SPEED-RL's claim: where most prompts are too easy or too hard, a target accuracy costs far fewer rollout tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.claims.page import Page
from tools.claims.race import Race
from tools.claims.trial import Arm, Bench, Levels, Protocol, Task

OBJECTIVE = "objective={clipped: {low: 0.2, high: 0.2}}"
TARGET = 0.5
PRICES = {
    "steps": ("step",),
    "rollout tokens": ("tokens/generated",),
    "trained tokens": ("tokens/trained",),
    "seconds": ("processor/all",),
}
ASKED = f"""Four rollouts show whether a prompt can teach; only then twenty more are written. Headline: at least twice
fewer rollout tokens than RLOO to a target accuracy. Half of the prompts have one step, which the warmed-up model
solves nearly always, four in ten have 9 to 12 steps, which it nearly never solves, and one in ten has 4 to 8, which it
can learn; accuracy is that of held-out prompts of 4 to 8 steps, sampled, target {TARGET}. All arms learn from 16
prompts of 24 rollouts a step with RLOO's advantage at the same learning rate; DAPO is its dynamic sampling, 48 prompts a wave."""


def arms(quick: bool) -> list[Arm]:
    prompts, samples = (2, 3) if quick else (16, 24)
    screening = "screened: 4, screen: 2, more: 1" if quick else "screened: 64, screen: 4, more: 20"
    return [
        Arm(name="RLOO", config="rloo", changes=(f"sampler={{uniform: {{prompts: {prompts}, samples: {samples}}}}}",)),
        Arm(
            name="DAPO",
            config="dapo",
            changes=(
                f"sampler={{uniform: {{prompts: {prompts}, samples: {samples}, wave: {3 * prompts}}}}}",
                "collect=[generate, judge, keep_mixed]",
            ),
        ),
        Arm(
            name="SPEED",
            config="speed",
            changes=(f"sampler={{screening: {{prompts: {prompts}, {screening}}}}}",),
        ),
    ]
