"""A run's configuration as something to be planned: its step, its cut and its engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Judging, Placement, Screen, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.spec.files import read_model_config
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError

PASSES = ("old_logprobs", "reference_logprobs", "critic.value")
"""Stages that take a pass over all rollouts."""


class Guess(NamedTuple):
    """What no configuration says: Guess(prompt_tokens=256, response_tokens=1200)."""

    prompt_tokens: int = 256
    response_tokens: float | None = None
    """On average; None takes a third of the most."""
    spread: float = 0.8
    drafted: float = 0.5
    """Of a response's tokens, where drafts are reused at all."""
    judging: Judging = Judging()


def lengths(most: int, guess: Guess) -> Lengths:
    """The responses that are guessed, of at most so many tokens."""
    mean = guess.response_tokens or most / 3
    if not 0 < mean <= most:
        raise SpecError(f"responses of {mean:g} tokens on average cannot have at most {most}; give a smaller mean.")
    return Lengths(mean=mean, most=most, spread=guess.spread)


def of_run(spec: RunSpec, cluster: Cluster, guess: Guess | None = None) -> tuple[Setup, Choice]:
    """What `predict` and `footprint` take, and as its setup `search`."""
    actor = build(spec.settings["actor"])
    assert isinstance(actor, ActorSettings), "checked when the configuration was"
    placement: Placement = "split" if spec.settings["cluster"].values["placement"] == "split" else "colocated"
    rollout = spec.choices["rollout"].values
    share = rollout.get("memory_share", 0.0)  # an engine in the driver has no such key
    assert isinstance(share, float | int), "memory_share was checked to be a number"
    tp, replicas, rows = (
        _number(rollout, key, default) for key, default in (("tp", 1), ("replicas", 1), ("rows", 256))
    )
    engines = Engines(tp, replicas, rows, float(share))
    architecture = describe(read_model_config(spec))
    job = _job(spec, actor, guess or Guess())
    most_prompt = _number(spec.settings["data"].values, "max_prompt_tokens", 0)
    setup = Setup(
        architecture=architecture,
        cluster=cluster,
        # A response is cut short where the model's context ends.
        job=replace(job, longest_prompt=min(most_prompt, architecture.context - job.lengths.most)),
        actor=actor,
        sleeps=rollout.get("sleep") is True,
    )
    return setup, Choice(actor=actor, engines=engines, placement=placement)


def _job(spec: RunSpec, actor: ActorSettings, guess: Guess) -> Job:
    sampler, most = spec.choices["sampler"].values, _number(spec.settings["sampling"].values, "max_tokens", 1024)
    stages = [part.name for chain in spec.chains.values() for part in chain]
    screen = None
    if "screened" in sampler:
        screen = Screen(*(_number(sampler, key, 1) for key in ("screened", "screen", "more")))
    return Job(
        prompts=_number(sampler, "prompts", 1),
        samples=_number(sampler, "samples", 1),
        lengths=lengths(most, guess),
        prompt_tokens=guess.prompt_tokens,
        optimizer_steps=actor.update.steps,
        epochs=actor.update.epochs,
        scores=sum(name in PASSES for name in stages),
        has_critic="critic.update" in stages,
        judging=guess.judging,
        screen=screen,
        drafted=guess.drafted if "drafts.reuse" in stages else 0.0,
        ahead=_number(spec.settings["schedule"].values, "ahead", 0),
    )


def _number(values: Mapping[str, object], key: str, default: int) -> int:
    value = values.get(key, default)  # a choice of another kind has other keys
    assert isinstance(value, int), f"{key} was checked to be a whole number"
    return value
