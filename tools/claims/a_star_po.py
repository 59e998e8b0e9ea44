"""A*-PO's claim: one rollout a prompt and no critic reach an accuracy in less time and memory, stage 1 included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.claims.page import Page, spread
from tools.claims.race import Race
from tools.claims.shaped_model import TINY, WIDE
from tools.claims.trial import Arm, Bench, Levels, Protocol, Task

TARGET = 0.75
PRICES = {
    "steps": ("step",),
    "rollout tokens": ("tokens/generated", "tokens/values"),
    "seconds": ("processor/all",),
    "seconds with stage 1": ("processor/all", "processor/values"),
    "peak MiB": ("memory/peak",),
}
ASKED = f"""A*-PO regresses one rollout a prompt on reward minus a value that eight rollouts of the start have shown
beforehand: no groups, no critic. Headline: target accuracy in at least 1.5 times less time than PPO, with at least a
quarter less peak memory of the actor. All arms write 128 rollouts a step of chained arithmetic of 1 to 8 steps, 1024
prompts, target {TARGET} on held-out ones, sampled; learning rates are the same. Rollout tokens contain
stage 1's. Peak memory is what learning and scoring took above what the process had before the run."""

NOTES = (
    "Runs this short do not earn stage 1 back; it pays where the same values serve longer runs, or several.",
    "PPO's steps contain the 5 in which only its critic learns, as shipped; without them it would be nearer.",
    "The peak memory in the table is that of 0.3 million parameters, which is the activations of a micro-batch that "
    "all arms share: the critic's weights, gradients and moments are 5 MiB.",
)


def arms(quick: bool) -> list[Arm]:
    rollouts = 4 if quick else 128

    def sampler(samples: int) -> str:
        return f"sampler={{uniform: {{prompts: {rollouts // samples}, samples: {samples}}}}}"

    return [
        Arm(
            name="GRPO",
            config="grpo",
            changes=(
                sampler(2 if quick else 8),
                "learn=[group_baseline, advantage]",
                "actor.reference=none",
                "objective={clipped: {kl: 0.0}}",
            ),
        ),
        Arm(
            name="PPO",
            config="ppo",
            changes=(
                sampler(1),
                "learn=[critic.value, generalised_advantage, {critic.update: {warmup: 5}}]",
                "critic.update.steps=1",
                "critic.optimizer.learning_rate.peak=1e-3",
            ),
        ),
        Arm(name="REBEL", config="rebel", changes=(sampler(2), "learn=[]")),
        Arm(
            name="A*-PO",
            config="a_star_po",
            # A model that was hardly warmed up solves nothing, and the filter would leave no prompt.
            changes=(sampler(1), f"data.solvable={str(not quick).lower()}"),
            value_samples=2 if quick else 8,
        ),
    ]


def peaks(work: Path, quick: bool) -> tuple[int, dict[str, float]]:
    """Parameters of a model whose weights fill the memory, and the peak MiB of two steps of PPO and A*-PO on it."""
    model, parameters = TINY.write(work / "narrow") if quick else WIDE.write(work / "wide_16_8")
    every = Levels(easiest=1, hardest=8, count=32)
    task = Task(train=(every,), held_out=(Levels(easiest=1, hardest=8, count=2),), max_tokens=16, warm_up=3)
    protocol = Protocol(
        steps=2,
        evaluate_every=0,
        changes=(f"model.folder={model}", "actor.update.steps=1", "actor.update.microbatch_tokens=512"),
        apart=not quick,
    )
    asked = (
        *("sampler={uniform: {prompts: 32, samples: 1}}", "data.solvable=false"),
        # At its first step already, so that the policy's update is part of the peak.
        "learn=[critic.value, generalised_advantage, {critic.update: {warmup: 0}}]",
    )
    chosen = [
        Arm(name="PPO", config="ppo", changes=(asked[0], asked[2], "critic.update.steps=1")),
        Arm(name="A*-PO", config="a_star_po", changes=asked[:2], value_samples=1),
    ]
    results = Bench(work=work, claim="a_star_po_memory", task=task, protocol=protocol).results(chosen, [0])
    return parameters, {result.arm: result.steps[-1]["memory/peak"] for result in results}


def _said_of(parameters: int, peak: dict[str, float]) -> str:
    less = 1 - peak["A*-PO"] / peak["PPO"]
    return (
        f"Peak memory of two steps with {parameters / 1e6:.0f} million parameters in FP32, where weights fill it: "
        f"PPO {peak['PPO']:.0f} MiB, A*-PO {peak['A*-PO']:.0f} MiB, reference and engine included in both: "
        f"{less:.0%} less where 25% was asked, {'met' if less >= 0.25 else 'not met'}."
    )


def page(work: Path, seeds: Sequence[int], quick: bool) -> Page:
    every = Levels(easiest=1, hardest=8, count=8 if quick else 1024)
    task = Task(
        train=(every,),
        held_out=(Levels(easiest=1, hardest=8, count=2 if quick else 128),),
        warm_up=3 if quick else 1500,
    )
    protocol = Protocol(
        steps=2 if quick else 100,
        evaluate_every=1 if quick else 4,
        target=TARGET,
        changes=("actor.update.steps=1", "actor.optimizer.learning_rate.peak=3e-4"),
        apart=not quick,
    )
    results = Bench(work=work, claim="a_star_po", task=task, protocol=protocol).results(arms(quick), seeds)
    race = Race(results=results, arms=arms(quick), baseline="PPO", target=TARGET, prices=PRICES)
    share = [result.steps[-1].get("processor/values", 0.0) for result in race.of("A*-PO")]
    return Page(
        title="A*-PO: one rollout a prompt",
        asked=ASKED,
        found=[
            race.said("A*-PO", "seconds", 1.5),
            race.said("A*-PO", "seconds with stage 1", 1.5),
            _said_of(*peaks(work, quick)),
            f"Stage 1 took {spread(share, '.0f')} seconds, once for a model and its prompts.",
            *NOTES,
        ],
        table=race.table(),
        runs=race.runs(),
        figure=race.figure("seconds"),
        command=f"tools/bench_algorithms.py a_star_po --seeds {len(seeds)}",
    )
