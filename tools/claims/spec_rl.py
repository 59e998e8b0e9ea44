"""SPEC-RL's claim: from the second epoch on far fewer tokens are decoded, and the accuracy stays what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tools.claims.page import Page, interval, over, reach, spread
from tools.claims.trial import Arm, Bench, Levels, Protocol, Result, Task

EPOCHS, STEPS_AN_EPOCH, PROMPTS = 6, 10, 32
BASES = ("GRPO", "PPO", "DAPO")
"""The methods that drafts are added to. An arm is compared with the one its name begins with."""
LENIENCES = {"lenience 1": 0.0, "lenience e^0.2": 0.2, "lenience e^0.5": 0.5, "lenience e^1": 1.0}
HEADLINE, EXACT = "lenience e^0.5", "exact"
REUSED = {how: f"drafts.reuse: {{log_lenience: {value}}}" for how, value in LENIENCES.items()} | {
    EXACT: "drafts.reuse: {log_lenience: 0.0, laws: 0}"
}
ASKED = """A draft from the last epoch is verified in one forward pass and kept up to the first rejected token, so
fewer tokens have to be decoded. Headline: at lenience e^0.5 at least twice fewer decoded tokens than the same method
without drafts, from the second epoch on, with the accuracy within noise. GRPO is configs/spec_rl.yaml without a
penalty for leaving the reference, PPO configs/ppo.yaml, DAPO configs/dapo.yaml without its penalty for length; exact
reuse draws the token after a rejection from the residual law. All learn from the same {prompts} prompts, 32 of them
with 4 rollouts each a step, in {epochs} times {steps} steps of one update, which are {epochs} epochs. DAPO draws until
32 groups are mixed, 64 prompts at a time, so it comes round sooner, even within a step, where nothing is reused: what
the present policy wrote it would keep whole. Its arms are compared step by step.

Decoded tokens are those the engine wrote, verified ones those it scored; rollout seconds are both together. Numbers
are means with the least and the greatest of three seeds; all but accuracies are from the second epoch on, and accuracy
is sampled, after the last two epochs."""
ACCURACY = (
    "With GRPO and PPO it is not reuse that costs accuracy at lenience 1: exact reuse keeps as much. It is the token "
    "after a rejection, which the published rule draws from the present policy and the exact one from what that policy "
    "has more of than the old one. The former brings back what was just rejected, epoch after epoch, and lags behind.",
    "Stored log-probabilities are renewed each epoch, as published, so at a lenience above 1 a token that falls by "
    "less than the lenience an epoch is never rejected: the reward in training rises above that of the method without "
    "drafts while held-out accuracy stays behind.",
    "DAPO comes back to a prompt after one or two updates, between which the policy hardly moves: nearly every draft "
    "is kept, a group that was mixed comes back mixed, and the same rollouts are learnt from again and again. Exact "
    "reuse keeps the law of each rollout, not that they are fresh, so its mean is lower here too, if within noise.",
)
SECONDS = (
    "With 256 rows at once on a thread, arithmetic bounds decoding as it bounds verification (about 20 thousand tokens "
    "a second each, measured alone): what a draft saves on an accelerator, waiting for memory at every decoded token, "
    "is not there to be saved. Seconds are of the processor, on a machine with other work, arms hours apart, which "
    "alone is a third more or less. PPO's with exact reuse are from before it asked for a draft's score and laws in "
    "one pass: GRPO's verification took 27 seconds then, with the same tokens and accuracies to the bit, and 15 since.",
)
TRIED = (
    "With GRPO, one seed each, with the same picture: pools of 128, 256 and 512 prompts, 8 rollouts a prompt, four "
    "updates a step (which made it worse: 0.67 where GRPO had 0.88).",
    "Drafts that the present version of the policy wrote itself, three seeds: DAPO decoded 68 times fewer at e^0.5 and "
    "lost 0.27, and with exact reuse it did not end within eight minutes, since groups that were not mixed came back "
    "as they were until the policy changed.",
)


def arms(prompts: int, quick: bool) -> list[Arm]:
    """Each method without drafts and with them, at every lenience and exactly."""
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
    filtered = "" if quick else ", keep_mixed"
    methods = {"GRPO": ("spec_rl", (), ""), "PPO": ("ppo", critic, ""), "DAPO": ("dapo", mixed, filtered)}
    ways = [("", "", ""), *((f", {how}", f"{{{reuse}}}, ", "drafts.remember, ") for how, reuse in REUSED.items())]
    return [
        Arm(name=name + said, config=config, changes=(f"collect=[{before}generate, {after}judge{last}]", *changes))
        for name, (config, changes, last) in methods.items()
        for said, before, after in ways
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
    results = [run for arm in chosen for run in bench.results([arm], seeds)]
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
        apart="method",
    )


def _base(arm: str) -> str:
    return arm.split(",")[0]


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
    base, _, how = str(runs[0]["arm"]).partition(", ")

    def told(name: str, form: str, unit: float = 1.0) -> str:
        return _told([run[name] / unit for run in runs], form)

    return {
        "method": base,
        "drafts": how or "none",
        "thousand decoded": told("decoded", ".1f", 1000),
        "times fewer": told("decoded, base / arm", ".1f"),
        "thousand verified": told("verified", ".0f", 1000),
        "rollout seconds": told("rollout seconds", ".1f"),
        "times as fast": told("rollout seconds, base / arm", ".2f"),
        "all seconds": told("all seconds", ".0f"),
        "accuracy": told("accuracy", ".3f"),
        "against none": told("accuracy minus base", "+.3f"),
    }


def _told(values: Sequence[float], form: str) -> str:
    return spread(values, form) if len(values) > 1 else f"{values[0]:{form}}"


def _found(runs: Sequence[dict]) -> dict[str, list[str]]:
    def of(base: str, how: str) -> list[dict]:
        return [run for run in runs if run["arm"] == f"{base}, {how}"]

    same = [run["the base's for as many decoded"] for run in of("GRPO", HEADLINE)]
    return {
        "Decoded tokens": [
            *(_fewer(base, of(base, HEADLINE), of(base, EXACT)) for base in BASES),
            f"For as many decoded tokens as GRPO at e^0.5 needed in all epochs, GRPO without drafts had reached "
            f"{_told(same, '.3f')}.",
        ],
        "Accuracy, against the same method and seed without drafts": [
            *(_changed(base, how, of(base, how)) for how in (HEADLINE, EXACT) for base in BASES),
            *ACCURACY,
        ],
        "Seconds": [*(_faster(base, of(base, HEADLINE), of(base, EXACT)) for base in BASES), *SECONDS],
        "What else was tried": list(TRIED),
    }


def _fewer(base: str, lenient: Sequence[dict], exact: Sequence[dict]) -> str:
    fewer, exactly = ([run["decoded, base / arm"] for run in found] for found in (lenient, exact))
    verdict = "met by every seed" if min(fewer) >= 2 else "2 was asked: not met"
    return f"{base}: {_told(fewer, '.1f')} times fewer at e^0.5 ({verdict}), {_told(exactly, '.1f')} with exact reuse."


def _changed(base: str, how: str, found: Sequence[dict]) -> str:
    changes = [run["accuracy minus base"] for run in found]
    if len(changes) == 1:
        verdict = "one seed says nothing of noise"
    else:
        verdict = "within noise" if sum(changes) / len(changes) >= -reach(changes) else "beyond noise: not met"
    return f"{base}, {how}: {interval(changes)}; {verdict}."


def _faster(base: str, lenient: Sequence[dict], exact: Sequence[dict]) -> str:
    faster, exactly = ([run["rollout seconds, base / arm"] for run in found] for found in (lenient, exact))
    return f"{base}: rollouts {_told(faster, '.2f')} times as fast at e^0.5, {_told(exactly, '.2f')} with exact reuse."


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
        how = name.partition(", ")[2] or "no drafts"
        decoded.plot(epochs, [sum(each) / len(each) for each in zip(*spent, strict=True)], marker="o")
        means = [sum(each) / len(each) for each in zip(*right, strict=True)]
        accuracy.plot(range(EPOCHS + 1), means, marker="o", label=how)
    for base, (decoded, accuracy) in zip(BASES, axes.T, strict=True):
        decoded.set(title=base, yscale="log")
        accuracy.set(xlabel=f"{steps} steps each")
        accuracy.legend(fontsize=7, loc="lower right")
    axes[0, 0].set(ylabel="thousand tokens decoded")
    axes[1, 0].set(ylabel="accuracy, held out, sampled")
    return figure
