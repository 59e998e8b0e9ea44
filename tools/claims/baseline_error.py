"""JSPO against RLOO on the same rollouts: how far baselines are from the truth, and how much their gradients vary.

Nothing is trained. Of each prompt's rollouts the first half gives its true value, the second half is cut into batches.
G prompts, T rollouts that tell the truth, P that are cut up, B rollouts of a batch.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_rl.actor import schedule
from megatron_rl.actor.learning import Step, share
from megatron_rl.actor.megatron_actor import MegatronActor
from megatron_rl.actor.sequences import Sequences
from megatron_rl.assemble import assemble, close
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, OLD_LOGPROBS, PROMPT_ID, REWARD, SLOT
from megatron_rl.loop import Run
from megatron_rl.ports import Objective, Stage
from megatron_rl.stages.advantage import Advantage
from megatron_rl.stages.leave_one_out_baseline import LeaveOneOutBaseline
from megatron_rl.stages.shrinkage_baseline import ShrinkageBaseline
from tools.claims.start import WarmStart
from tools.claims.trial import Arm, Bench, answers

METHODS: dict[str, Stage] = {"RLOO": LeaveOneOutBaseline(), "JSPO": ShrinkageBaseline()}
ARM = Arm(name="JSPO", config="jspo", changes=("sampler.uniform.prompts=4", "actor.update.steps=1"))


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How many rollouts: Draws(prompts=32, truth=128, pool=128, sizes=(2, 4, 8, 16), gradients=8)."""

    prompts: int
    """Prompts of one batch."""
    truth: int
    """Rollouts of each prompt that give its true value."""
    pool: int
    """Rollouts of each prompt that are cut into groups."""
    sizes: tuple[int, ...]
    """Rollouts of a group."""
    gradients: int
    """Batches of the same prompts whose gradients are compared."""


def measure(bench: Bench, draws: Draws, seed: int) -> list[dict[str, float]]:
    """One entry for each group size, with error and variance of both methods."""
    model = WarmStart(seed=0, steps=bench.task.warm_up).folder(bench.work)
    with tempfile.TemporaryDirectory() as scratch:
        run = assemble(bench.spec(ARM, seed, model, Path(scratch)))
        try:
            run.machines["engine"].progress = None  # type: ignore[attr-defined]  # the embedded engine's
            run.weights.publish(0)
            rollouts = answers(run, draws.truth + draws.pool)
            return [{"size": size, "seed": seed} | _compare(run, rollouts, draws, size) for size in draws.sizes]
        finally:
            close(run, "finished")


def _compare(run: Run, rollouts: Batch, draws: Draws, size: int) -> dict[str, float]:
    value_G = _true_values(rollouts, draws.truth)
    noise_G = value_G * (1 - value_G) / (draws.truth - 1)
    prompt_B, slot_B = rollouts.index(PROMPT_ID), rollouts.numbers(SLOT)
    found: dict[str, float] = {"value_spread": float(value_G.std()), "value_mean": float(value_G.mean())}
    errors: dict[str, list[float]] = {name: [] for name in METHODS}
    gradients: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    for first in range(0, len(value_G) - draws.prompts + 1, draws.prompts):
        asked_B = (prompt_B >= first) & (prompt_B < first + draws.prompts)
        for number, start in enumerate(range(draws.truth, draws.truth + draws.pool - size + 1, size)):
            batch = rollouts.where(asked_B & (slot_B >= start) & (slot_B < start + size))
            here_B = prompt_B[asked_B & (slot_B >= start) & (slot_B < start + size)]
            for name, stage in METHODS.items():
                told = stage(batch, None, run.context(0))[0]
                # The truth is an estimate itself; its own variance would count as error of both.
                square_B = (told.numbers(BASELINE) - value_G[here_B]).square() - noise_G[here_B]
                errors[name].append(float(square_B.mean()))
                if first == 0 and number < draws.gradients:
                    gradients[name].append(_gradient(run, told))
    for name in METHODS:
        found[f"error/{name}"] = sum(errors[name]) / len(errors[name])
        found[f"variance/{name}"] = _scatter(torch.stack(gradients[name]))
    return found


def _true_values(rollouts: Batch, truth: int) -> Tensor:
    is_truth_B = rollouts.numbers(SLOT) < truth
    reward_B, prompt_B = rollouts.numbers(REWARD)[is_truth_B], rollouts.index(PROMPT_ID)[is_truth_B]
    return torch.bincount(prompt_B, weights=reward_B) / torch.bincount(prompt_B)


def _scatter(gradient_NP: Tensor) -> float:
    """Trace of the covariance: mean squared distance of the gradients from their mean, unbiased."""
    return float((gradient_NP - gradient_NP.mean(0)).square().sum() / (len(gradient_NP) - 1))


def _gradient(run: Run, batch: Batch) -> Tensor:
    """The gradient of the run's objective on the whole batch, all parameters in one row."""
    actor = run.machines["actor"]
    assert isinstance(actor, MegatronActor), "gradients are read inside the actor"
    batch = Advantage()(batch, None, run.context(0))[0]
    return gradient(actor, batch, run.objective)


def gradient(actor: MegatronActor, batch: Batch, objective: Objective) -> Tensor:
    reads = [column for column in objective.reads if column != OLD_LOGPROBS]
    sequences = Sequences(batch, reads)
    rows = torch.arange(len(batch))
    step = Step(
        sequences=sequences,
        rows=rows,
        objective=objective,
        counts=sequences.counts(rows),
        limits=actor.limits,
        read=actor.read,
    )
    actor.optimizer.megatron.zero_grad()
    schedule.forward_backward(actor.chunks, share(sequences, rows, actor.limits)[1], step.finish)
    return torch.cat([parameter.main_grad.flatten().clone() for parameter in actor.chunks[0].parameters()])
