"""Which charts a report has, in which order, and which metric of each run they draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_rl.telemetry.metrics import PARITY
from megatron_rl.telemetry.table import first_match

Unit = Literal["number", "share", "tokens", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A chart worth a place of its own, if a run has a metric for it: the first pattern that matches."""

    title: str
    patterns: tuple[str, ...]
    note: str
    unit: Unit = "number"
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart as the page draws it. `names` holds the metric of each run, None where the run lacks it."""

    title: str
    note: str
    unit: Unit
    log: bool
    names: list[str | None]


LEARNING = (
    Wanted(title="Reward", patterns=("reward/mean",), note="mean over the rollouts of a step, shaping included"),
    Wanted(title="Right answers", patterns=("correct/mean",), note="share of training rollouts", unit="share"),
    Wanted(title="Response length", patterns=("length/mean",), note="mean tokens a response", unit="tokens"),
    Wanted(
        title="Entropy",
        patterns=("entropy", "entropy/mean", "*/entropy", "*entropy*"),
        note="of the policy, nats a token",
    ),
    Wanted(
        title="KL",
        patterns=("kl/reference", "kl", "*/kl", "kl/*", "*kl*"),
        note="divergence a token",
    ),
    Wanted(title="Loss", patterns=("loss", "*/loss", "*loss*"), note="of the objective"),
    Wanted(title="Gradient norm", patterns=("grad_norm", "*/grad_norm", "*grad*norm*"), note="before clipping"),
    Wanted(
        title="Cut short", patterns=("length/cut",), note="share of responses that spent their budget", unit="share"
    ),
)

GAPS = tuple(
    Wanted(title=title, patterns=(name,), note=note, log=True)
    for title, name, note in zip(
        ("Mean gap", "99th percentile", "Largest gap"),
        PARITY,
        ("|log p(actor) − log p(engine)| a token", "of the same gap", "the worst token of the step"),
        strict=True,
    )
)


def panels(wanted: Sequence[Wanted], runs: Sequence[Mapping[str, object]]) -> list[Panel]:
    """The wanted charts for which at least one run has a metric."""
    found = [
        Panel(
            title=want.title,
            note=want.note,
            unit=want.unit,
            log=want.log,
            names=[first_match(metrics, want.patterns) for metrics in runs],
        )
        for want in wanted
    ]
    return [panel for panel in found if any(panel.names)]


def other_panels(taken: Sequence[Panel], runs: Sequence[Mapping[str, object]]) -> dict[str, list[Panel]]:
    """A chart for every metric that has none yet, by the part of its name before the first '/'."""
    shown = {name for panel in taken for name in panel.names}
    rest: dict[str, list[Panel]] = {}
    for name in sorted({name for metrics in runs for name in metrics} - shown):
        family, _, short_name = name.partition("/")
        names = [name if name in metrics else None for metrics in runs]
        panel = Panel(title=name, note="", unit="number", log=False, names=names)
        rest.setdefault(family if short_name else "update", []).append(panel)
    return rest
