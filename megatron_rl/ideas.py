"""The ideas that a configuration chose, built and proved to fit together before any machine is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from megatron_rl.batch.columns import REFERENCE_REWARDS
from megatron_rl.combining import Chosen, check_ahead, check_combination, check_in_flight, check_laws, check_sleep
from megatron_rl.pipeline import check_wiring
from megatron_rl.ports import Sampler, Stage
from megatron_rl.rollout.servable import sleepless, unflyable
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import Part, RunSpec
from megatron_rl.spec.schema import SpecError


@runtime_checkable
class Budgeted(Protocol):
    """An idea with lengths of its own, which follow `sampling.max_tokens` where they were not written."""

    def within(self, max_tokens: int) -> Self:
        """The idea, with every such length set."""


@dataclass(frozen=True, kw_only=True)
class Ideas:
    """What the configuration chose of each seam, built and wired."""

    sampler: Sampler
    collect: tuple[tuple[str, Stage], ...]
    learn: tuple[tuple[str, Stage], ...]
    objective: object

    @property
    def needs(self) -> set[str]:
        """The machines that some stage asks for."""
        return {need for _, stage in (*self.collect, *self.learn) for need in getattr(stage, "uses", ())}


def read_ideas(spec: RunSpec) -> Ideas:
    """Builds sampler, stages and objective; SpecError lists every column that is read before it is written."""
    budget = spec.settings["sampling"].values["max_tokens"]
    assert isinstance(budget, int), "it was checked to be a whole number"

    def built(part: Part) -> tuple[str, Any]:  # what a user may have written too
        idea = build(part)
        return part.name, idea.within(budget) if isinstance(idea, Budgeted) else idea

    chosen = Chosen(
        sampler=built(spec.choices["sampler"]),
        collect=tuple(map(built, spec.chains["collect"])),
        learn=tuple(map(built, spec.chains["learn"])),
        objective=built(spec.choices["objective"]),
    )
    (_, sampler), collect, learn, (_, objective) = chosen
    from_data = (REFERENCE_REWARDS,) if spec.settings["data"].values.get("values") else ()
    problems = check_wiring((*getattr(type(sampler), "writes", ()), *from_data), collect, learn, chosen.objective)
    problems += check_combination(chosen)
    rollout, ahead = spec.choices["rollout"].values, bool(spec.settings["schedule"].values["ahead"])
    if ahead:
        problems += check_ahead(chosen)
    if spec.choices["rollout"].name == "vllm":
        problems += check_laws(chosen)
    if rollout.get("in_flight"):
        problems += check_in_flight(chosen)
        problems += unflyable(ahead=ahead, sleeps=bool(rollout["sleep"]))
    if rollout.get("sleep"):
        split = spec.settings["cluster"].values["placement"] == "split"
        problems += check_sleep(chosen)
        problems += sleepless(ahead=ahead, split=split)
    if problems:
        raise SpecError([f"{spec.files[0]}: {problem}" for problem in problems])
    return Ideas(sampler=sampler, collect=tuple(collect), learn=tuple(learn), objective=objective)
