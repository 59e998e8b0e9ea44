"""The ideas that a configuration chose, built and proved to fit together before any machine is."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.columns import REFERENCE_REWARDS
from megatron_rl.combining import check_ahead, check_combination
from megatron_rl.pipeline import check_wiring
from megatron_rl.ports import Sampler, Stage
from megatron_rl.spec.resolve import build
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError


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
    sampler = build(spec.choices["sampler"])
    objective = build(spec.choices["objective"])
    stages = {name: tuple((part.name, build(part)) for part in spec.chains[name]) for name in ("collect", "learn")}
    from_data = (REFERENCE_REWARDS,) if spec.settings["data"].values.get("values") else ()
    written = (*getattr(type(sampler), "writes", ()), *from_data)
    named = (spec.choices["objective"].name, objective)
    problems = check_wiring(written, stages["collect"], stages["learn"], named)  # type: ignore[arg-type]
    chosen = (spec.choices["sampler"].name, sampler)
    problems += check_combination(chosen, stages["collect"], stages["learn"], named)  # type: ignore[arg-type]
    if spec.settings["schedule"].values["ahead"]:
        problems += check_ahead(chosen, stages["collect"], stages["learn"], named)  # type: ignore[arg-type]
    if problems:
        raise SpecError([f"{spec.files[0]}: {problem}" for problem in problems])
    collect, learn = stages["collect"], stages["learn"]
    return Ideas(sampler=sampler, collect=collect, learn=learn, objective=objective)  # type: ignore[arg-type]
