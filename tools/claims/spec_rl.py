"""SPEC-RL's claim: from the second epoch on far fewer tokens are decoded, and the accuracy stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tools.claims.page import Page, over, spread
from tools.claims.trial import Arm, Bench, Levels, Protocol, Result, Task

EPOCHS, STEPS_AN_EPOCH, PROMPTS = 6, 10, 32
LENIENCES = {"1": 0.0, "e^0.2": 0.2, "e^0.5": 0.5, "e^1": 1.0}
HEADLINE, EXACT = "SPEC-RL, lenience e^0.5", "SPEC-RL, exact"
BASES = ("GRPO", "PPO", "DAPO")
"""What an arm is compared with: the method its name begins with, which writes everything anew; GRPO without one."""
OTHER_SEEDS = 3
"""How many of the seeds PPO's and DAPO's arms have, which take several times as long as GRPO's."""
LEFT_OUT = "DAPO, exact"
"""Next-token laws of all the drafts of all its waves take longer on a processor than every other arm together."""
REUSED = {
    HEADLINE.removeprefix("SPEC-RL, "): f"drafts.reuse: {{log_lenience: {LENIENCES['e^0.5']}}}",
    EXACT.removeprefix("SPEC-RL, "): "drafts.reuse: {log_lenience: 0.0, laws: 0}",
}
ASKED = """A draft from the last epoch is verified in one forward pass and kept up to the first rejected token, so
fewer tokens have to be decoded. Headline: at lenience e^0.5 at least twice fewer decoded tokens than the same method
without drafts, from the second epoch on, with the accuracy within noise. SPEC-RL's arms are the GRPO of
configs/spec_rl.yaml, without a penalty for leaving the reference; PPO's and DAPO's are configs/ppo.yaml and
configs/dapo.yaml, without DAPO's penalty for length. All learn from the same {prompts} prompts, 32 of them with 4
rollouts each a step, in {epochs} times {steps} steps of one update, which are {epochs} epochs; DAPO draws until 32
groups are mixed, 64 prompts at a time, so its epochs are shorter, and its arms are compared step by step. Decoded
tokens are those the engine wrote, verified ones those it scored; rollout seconds are both together."""


NOTES = (
    "So it is not reuse that costs accuracy at lenience 1: both keep as much. It is the token after a rejection, "
    "which the published rule draws from the present policy and the exact one from what that policy has more of "
    "than the old one. The former brings back what was just rejected, epoch after epoch, and lags behind.",
    "Stored log-probabilities are renewed each epoch, as published, so at a lenience above 1 a token that falls by "
    "less than the lenience an epoch is never rejected: the reward in training rises above GRPO's while held-out "
    "accuracy stays behind.",
    "Rollout seconds hardly fall here, or grow: with 256 rows at once on a thread, arithmetic bounds decoding as "
    "it bounds verification (about 20 thousand tokens a second each, measured alone); what a draft saves on an "
    "accelerator, waiting for memory at every decoded token, is not there to be saved. Seconds were measured on a "
    "machine with other work, GRPO's arms hours before the others: they are to be compared within a method alone.",
    "DAPO waits for mixed groups, so it draws its prompts several times as often; drafts are younger, there are more "
    "of them, nearly all are kept, and the engine writes hardly anything new. The reward in training rises while "
    "held-out accuracy falls, probably because a group that was mixed comes back mixed and is kept again. DAPO with "
    "exact reuse is not there: one seed of it had not ended after eight minutes of processor time.",
    "Tried besides, with GRPO, one seed each, with the same picture: pools of 128, 256 and 512 prompts, 8 rollouts a "
    "prompt, four updates a step (which made it worse: 0.67 where GRPO had 0.88).",
)


def arms(prompts: int, quick: bool) -> list[Arm]:
    reusing = [
        Arm(
            name=f"SPEC-RL, lenience {name}",
            config="spec_rl",
            changes=(f"collect=[{{drafts.reuse: {{log_lenience: {value}}}}}, generate, drafts.remember, judge]",),
        )
        for name, value in LENIENCES.items()
    ]
    exact = "collect=[{drafts.reuse: {log_lenience: 0.0, laws: 0}}, generate, drafts.remember, judge]"
    return [
        Arm(name="GRPO", config="spec_rl", changes=("collect=[generate, judge]",)),
        Arm(name=EXACT, config="spec_rl", changes=(exact,)),
        *reusing,
        *others(prompts, quick),
    ]


def others(prompts: int, quick: bool) -> list[Arm]:
    """PPO and DAPO, without drafts and with those of the headline's lenience; PPO with exact reuse too."""
    critic = (
        "learn=[critic.value, generalised_advantage, {critic.update: {warmup: 5}}]",
        "critic.update.steps=1",
        "critic.optimizer.learning_rate.peak=1e-3",
    )
    mixed = (
        "schedule.max_waves=50",
        f"sampler.uniform.wave={2 * prompts}",
        "sampler.uniform.max_age=0",
        "objective={clipped: {low: 0.2, high: 0.28, dual_clip: 10.0}}",
    )
    # A model that was hardly warmed up solves nothing, and the filter would wait for ever.
    methods = {"PPO": ("ppo", critic, ""), "DAPO": ("dapo", mixed, "" if quick else ", keep_mixed")}
    ways = [("", "", ""), *((f", {how}", f"{{{reuse}}}, ", "drafts.remember, ") for how, reuse in REUSED.items())]
    return [
        Arm(name=name + said, config=config, changes=(f"collect=[{before}generate, {after}judge{last}]", *changes))
        for name, (config, changes, last) in methods.items()
        for said, before, after in ways
        if name + said != LEFT_OUT
    ]


def page(work: Path, seeds: Sequence[int], quick: bool) -> Page:
    steps, prompts = (2, 2) if quick else (STEPS_AN_EPOCH, PROMPTS)
    levels = Levels(easiest=1, hardest=8, count=steps * prompts)
    task = Task(
        train=(levels,),
        held_out=(Levels(easiest=1, hardest=8, count=2 if quick else 256),),
        warm_up=3 if quick else 1500,
    )
    changes = (
        f"sampler={{uniform: {{prompts: {prompts}, samples: 4}}}}",
        "actor.update.steps=1",
        "actor.reference=none",
        "learn=[group_baseline, advantage]",
        "objective={clipped: {kl: 0.0}}",
        "actor.optimizer.learning_rate.peak=3e-4",
    )
    chosen = arms(prompts, quick)
    protocol = Protocol(steps=EPOCHS * steps, evaluate_every=steps, changes=changes)
    bench = Bench(work=work, claim="spec_rl", task=task, protocol=protocol)
    dear = others(prompts, quick)
    results = bench.results([arm for arm in chosen if arm not in dear], seeds)
    results += bench.results(dear, seeds[:OTHER_SEEDS])
    found = {(result.arm, result.seed): result for result in results}
    runs = [_run(result, found[_base(result.arm), result.seed], steps) for result in results]
    return Page(
        title="SPEC-RL: last epoch's responses as drafts",
        asked=ASKED.format(prompts=steps * prompts, epochs=EPOCHS, steps=steps),
        found=_found(runs),
        table=[_line([run for run in runs if run["arm"] == arm.name]) for arm in chosen],
        runs=runs,
        figure=_figure(results, [arm.name for arm in chosen], steps),
        command=f"tools/bench_algorithms.py spec_rl --seeds {len(seeds)}",
    )


def _base(arm: str) -> str:
    return next((base for base in BASES if arm.startswith(base)), "GRPO")


def _spent(result: Result, what: str, first: int, last: int) -> float:
    """What the steps after `first` up to `last` spent."""
    before = result.steps[first - 1].get(what, 0.0) if first else 0.0
    return result.steps[last - 1].get(what, 0.0) - before


def _run(result: Result, base: Result, steps: int) -> dict:
    """One run beside its base of the same seed, from the second epoch on."""
    last = len(result.steps)

    def later(of: Result, *what: str) -> float:
        return sum(_spent(of, name, steps, last) for name in what)

    rollout = ("processor/generate", "processor/verify")
    return {
        "arm": result.arm,
        "seed": result.seed,
        "decoded": later(result, "tokens/generated"),
        "decoded, base / arm": over(later(base, "tokens/generated"), later(result, "tokens/generated")),
        "verified": later(result, "tokens/verified"),
        "trained": later(result, "tokens/trained"),
        "rollout seconds": later(result, *rollout),
        "rollout seconds, base / arm": over(later(base, *rollout), later(result, *rollout)),
        "all seconds": later(result, "processor/all"),
        "accuracy": _accuracy(result),
        "accuracy minus base": _accuracy(result) - _accuracy(base),
        "the base's for as many decoded": _accuracy_for(base, result.steps[-1]["tokens/generated"]),
    }


def _accuracy(result: Result) -> float:
    """After the last two epochs, averaged."""
    last = [evaluation["accuracy"] for evaluation in result.evaluations[-2:]]
    return sum(last) / len(last)


def _accuracy_for(base: Result, decoded: float) -> float:
    """GRPO's at its first evaluation after it had decoded at least as many tokens."""
    return next(
        evaluation["accuracy"]
        for evaluation in base.evaluations
        if evaluation.get("tokens/generated", 0.0) >= decoded or evaluation is base.evaluations[-1]
    )


def _line(runs: Sequence[dict]) -> dict[str, object]:
    forms = {
        "decoded": ".0f",
        "decoded, base / arm": ".1f",
        "verified": ".0f",
        "rollout seconds": ".1f",
        "rollout seconds, base / arm": ".2f",
        "all seconds": ".0f",
        "accuracy": ".3f",
        "accuracy minus base": "+.3f",
        "the base's for as many decoded": ".3f",
    }
    return {"arm": runs[0]["arm"]} | {name: spread((run[name] for run in runs), form) for name, form in forms.items()}


def _found(runs: Sequence[dict]) -> list[str]:
    same = [run["the base's for as many decoded"] for run in runs if run["arm"] == HEADLINE]
    how_lenient, how_exact = REUSED
    return [
        *(_said_of(runs, base, how_lenient) for base in BASES),
        f"For as many decoded tokens as the arm at e^0.5 needed in all epochs, GRPO had reached {spread(same, '.3f')}.",
        "All numbers but the accuracies are from the second epoch on; accuracy is sampled, after the last two epochs.",
        "Exact reuse draws the token after a rejection from the residual law.",
        *(_said_of(runs, base, how_exact) for base in BASES if f"{base}, {how_exact}" != LEFT_OUT),
        f"Seeds: {_seeds(runs, 'GRPO')} of GRPO's arms, {_seeds(runs, 'PPO')} of PPO's and DAPO's.",
        *NOTES,
    ]


def _seeds(runs: Sequence[dict], base: str) -> int:
    return sum(run["arm"] == base for run in runs)


def _said_of(runs: Sequence[dict], base: str, how: str) -> str:
    """What reuse did to one method, beside the range of that method over its seeds."""
    ours = [run for run in runs if run["arm"] == f"{'SPEC-RL' if base == 'GRPO' else base}, {how}"]
    fewer, worse = [run["decoded, base / arm"] for run in ours], [run["accuracy minus base"] for run in ours]
    seconds = [run["rollout seconds, base / arm"] for run in ours]
    several = base if len(ours) > 1 else "GRPO"
    plain = [run["accuracy"] for run in runs if run["arm"] == several]
    noise = max(plain) - min(plain)
    return (
        f"{base}, {how}: {spread(fewer, '.1f')} times fewer decoded tokens ("
        + ("met by every seed" if min(fewer) >= 2 else "2 was asked: not met")
        + f"), rollouts {spread(seconds)} times as fast, accuracy {spread(worse, '+.3f')} against {base} of the same "
        f"seed, where {several}'s own range over seeds is {noise:.3f}: "
        + ("within noise." if sum(worse) / len(worse) >= -noise else "worse than noise explains: not met.")
    )


def _figure(results: Sequence[Result], names: Sequence[str], steps: int) -> Figure:
    """A column for each method: what it decodes above, how right it is below."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, len(BASES), sharex=True, sharey="row")
    epochs = range(1, EPOCHS + 1)
    for name in names:
        decoded, accuracy = axes[:, BASES.index(_base(name))]
        runs = [result for result in results if result.arm == name]
        spent = [
            [_spent(run, "tokens/generated", (epoch - 1) * steps, epoch * steps) / 1000 for epoch in epochs]
            for run in runs
        ]
        right = [[evaluation["accuracy"] for evaluation in run.evaluations] for run in runs]
        decoded.plot(epochs, [sum(each) / len(each) for each in zip(*spent, strict=True)], marker="o", label=name)
        accuracy.plot(range(EPOCHS + 1), [sum(each) / len(each) for each in zip(*right, strict=True)], marker="o")
    for base, (decoded, accuracy) in zip(BASES, axes.T, strict=True):
        decoded.set(title=base, yscale="log")
        accuracy.set(xlabel=f"{steps} steps each")
        decoded.legend(fontsize=7)
    axes[0, 0].set(ylabel="thousand tokens decoded")
    axes[1, 0].set(ylabel="accuracy, held out, sampled")
    return figure
