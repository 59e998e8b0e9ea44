"""SPEED-RL's claim: where most prompts are too easy or too hard, a target accuracy costs far fewer rollout tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.claims.page import Page
from tools.claims.race import Race
from tools.claims.trial import Arm, Bench, Levels, Protocol, Task

OBJECTIVE = "objective={clipped: {low: 0.2, high: 0.2, dual_clip: 10.0}}"
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
prompts of 24 rollouts a step with RLOO's advantage at the same learning rate; DAPO is its dynamic sampling, 48
prompts a wave."""


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


def page(work: Path, seeds: Sequence[int], quick: bool) -> Page:
    count = 4 if quick else 400
    task = Task(
        train=(
            Levels(easiest=1, hardest=1, count=5 * count),
            Levels(easiest=4, hardest=8, count=count),
            Levels(easiest=9, hardest=12, count=4 * count),
        ),
        held_out=(Levels(easiest=4, hardest=8, count=2 if quick else 128),),
        max_tokens=64,
        warm_up=3 if quick else 1500,
    )
    protocol = Protocol(
        steps=2 if quick else 80,
        evaluate_every=1 if quick else 5,
        target=TARGET,
        kept=("screen/accepted_share", "keep_mixed/kept_share"),
        changes=("actor.update.steps=1", "actor.optimizer.learning_rate.peak=3e-4", OBJECTIVE),
    )
    results = Bench(work=work, claim="speed", task=task, protocol=protocol).results(arms(quick), seeds)
    race = Race(results=results, arms=arms(quick), baseline="RLOO", target=TARGET, prices=PRICES)
    return Page(
        title="SPEED-RL: screen first, then continue",
        asked=ASKED,
        found=[race.said("SPEED", "rollout tokens", 2.0), race.said("DAPO", "rollout tokens", 1.0)],
        table=race.table(),
        runs=race.runs(),
        figure=race.figure("rollout tokens", unit=1000),
        command=f"tools/bench_algorithms.py speed --seeds {len(seeds)}",
    )
