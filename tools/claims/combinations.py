"""Every pair of the five methods on one task: what a pair comes to, or why there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from megatron_rl.ideas import read_ideas
from megatron_rl.spec.schema import SpecError
from tools.claims.page import Page, spread
from tools.claims.trial import Arm, Bench, Levels, Protocol, Result, Task

PARTS = ("JSPO", "A*-PO", "SPEED", "SPEC-RL", "priorities", "statistics")
"""The methods; PSPO is its two halves together, since they combine differently."""
VALUE_SAMPLES = 8
ASKED = """Methods are written together by listing the steps of both. Every cell is one pair, the diagonal one method
alone: accuracy on held-out prompts of 1 to 8 steps, sampled, after {steps} steps, and thousands of rollout tokens
written until then (without those of A*-PO's stage 1). PSPO's two halves, its priorities and its smoothed statistics,
stand apart; where they meet is PSPO. All learn from about {rollouts} rollouts a step, {prompts} prompts, one update a
step, at the same learning rate. No headline was set: the question is which pairs there are, and whether one undoes the
other."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How many prompts and rollouts the steps of every arm come from."""

    prompts: int
    samples: int
    more: int
    """Rollouts that SPEED adds to its screening ones."""
    low: float = 0.0
    """SPEED accepts prompts of which more than this share was right."""

    def sampler(self, parts: Sequence[str]) -> dict[str, object]:
        if "SPEED" in parts:
            accepted = max(1, self.prompts * self.samples // (self.samples + self.more))
            screened = {"prompts": accepted, "screened": 3 * accepted, "screen": self.samples, "more": self.more}
            return {"screening": screened}
        is_single = "A*-PO" in parts
        drawn = {
            "prompts": self.prompts * (self.samples if is_single else 1),
            "samples": 1 if is_single else self.samples,
        }
        return {"prioritised" if "priorities" in parts else "uniform": drawn}


def chosen(parts: Sequence[str], draws: Draws) -> dict[str, object]:
    """What the parts add to sampler, chains and objective, each as its own configuration has it."""
    regresses, drafts = "A*-PO" in parts, "SPEC-RL" in parts
    named = (("JSPO", "shrinkage_baseline"), ("statistics", "smoothed_stats"))
    baselines = [stage for part, stage in named if part in parts]
    plain = [] if regresses or baselines else ["leave_one_out_baseline"]
    return {
        "sampler": draws.sampler(parts),
        "collect": [
            *(["drafts.reuse"] if drafts else []),
            "generate",
            *(["drafts.remember"] if drafts else []),
            "judge",
            *([{"screen": {"low": draws.low}}] if "SPEED" in parts else []),
        ],
        "learn": [
            *plain,
            *baselines,
            *(["optimal_value", "reference_logprobs"] if regresses else ["advantage"]),
            *(["importance_weight"] if "priorities" in parts else []),
        ],
        "objective": {"value_regression" if regresses else "clipped": {}},
    }


def arm(parts: Sequence[str], draws: Draws, values: int) -> Arm:
    written = chosen(parts, draws)
    if "priorities" in parts and "SPEED" in parts:
        written |= {"sampler": draws.sampler(["priorities"])}
    changes = tuple(f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in written.items())
    regresses = "A*-PO" in parts
    more = ("actor.reference=device", "data.solvable=false") if regresses else ()
    name = " + ".join(dict.fromkeys(parts))
    return Arm(name=name, config="rloo", changes=(*changes, *more), value_samples=values if regresses else 0)


def page(work: Path, seeds: Sequence[int], quick: bool) -> Page:
    draws = Draws(prompts=2, samples=2, more=2, low=-1.0) if quick else Draws(prompts=32, samples=4, more=8)
    count, steps = (8, 2) if quick else (256, 40)
    task = Task(
        train=(Levels(easiest=1, hardest=8, count=count),),
        held_out=(Levels(easiest=1, hardest=8, count=2 if quick else 256),),
        warm_up=3 if quick else 1500,
    )
    protocol = Protocol(
        steps=steps,
        evaluate_every=steps,
        changes=(
            "actor.update.steps=1",
            "actor.optimizer.learning_rate.peak=3e-4",
        ),
    )
    bench = Bench(work=work, claim="combinations", task=task, protocol=protocol)
    pairs = [(one, other) for place, one in enumerate(PARTS) for other in PARTS[place:]]
    arms = {pair: arm(pair, draws, 2 if quick else VALUE_SAMPLES) for pair in pairs}
    why = {pair: refusal(bench, arms[pair]) for pair in pairs}
    alone = Arm(name="RLOO", config="rloo", changes=arm((), draws, 0).changes)
    fitting = [alone, *(arms[pair] for pair in pairs if not why[pair])]
    results = bench.results(fitting, seeds)
    return Page(
        title="Pairs of methods",
        asked=ASKED.format(steps=steps, rollouts=draws.prompts * draws.samples, prompts=count),
        found=[
            f"RLOO, which has none of them: {_cell(results, alone.name)}.",
            *(f"{one} with {other} is refused: {reason}" for (one, other), reason in why.items() if reason),
            "The difference between two accuracies has to exceed their ranges over seeds to mean anything.",
            "Short responses to few prompts are the worst case of SPEC-RL as published; its page says why, and which "
            f"form does better. Prompts come back every {count // draws.prompts} steps here, with A*-PO's single "
            f"rollouts every {count // draws.prompts // draws.samples}, and most drafts are kept whole.",
        ],
        table=[
            {"": one} | {other: "refused" if why[pair] else _cell(results, arms[pair].name) for other, pair in row}
            for one in PARTS
            for row in [[(other, _ordered(one, other)) for other in PARTS]]
        ],
        runs=[
            {"arm": result.arm, "seed": result.seed, "accuracy": result.evaluations[-1]["accuracy"]} | result.steps[-1]
            for result in results
        ],
        figure=_figure(results, [each.name for each in fitting]),
        command=f"tools/bench_algorithms.py combinations --seeds {len(seeds)}",
    )


def refusal(bench: Bench, arm: Arm) -> str:
    """Why the arm cannot be, as the command line says it; nothing where it can."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            read_ideas(bench.spec(arm, 0, Path(scratch), Path(scratch)))
        except SpecError as error:
            return str(error).split(": ", 1)[-1]
    return ""


def _ordered(one: str, other: str) -> tuple[str, str]:
    return (one, other) if PARTS.index(one) <= PARTS.index(other) else (other, one)


def _cell(results: Sequence[Result], name: str) -> str:
    own = [result for result in results if result.arm == name]
    thousands = [result.steps[-1]["tokens/generated"] / 1000 for result in own]
    return f"{spread(result.evaluations[-1]['accuracy'] for result in own)}, {sum(thousands) / len(own):.0f}k"


def _figure(results: Sequence[Result], names: Sequence[str]) -> Figure:
    """A line an arm, the most accurate on top: accuracy over seeds, and tokens."""
    shares = {name: [result.evaluations[-1]["accuracy"] for result in results if result.arm == name] for name in names}
    ordered = sorted(names, key=lambda name: sum(shares[name]) / len(shares[name]))
    figure = Figure(figsize=(8, 0.28 * len(names) + 0.9), layout="constrained")
    accuracy, tokens = figure.subplots(1, 2, sharey=True)
    for height, name in enumerate(ordered):
        color = "black" if name == "RLOO" else "tab:blue"
        accuracy.plot(shares[name], [height] * len(shares[name]), "o-", color=color, markersize=4, linewidth=1)
        spent = [result.steps[-1]["tokens/generated"] / 1000 for result in results if result.arm == name]
        tokens.barh(height, sum(spent) / len(spent), color=color, height=0.5)
    accuracy.set_yticks(range(len(ordered)), ordered)
    accuracy.set(xlabel="accuracy, sampled, a dot a seed")
    tokens.set(xlabel="thousand rollout tokens")
    return figure
