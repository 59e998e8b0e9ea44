"""A run folder's numbers as the report draws them: columns of numbers, thinned to a bounded count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from megatron_rl.ports import Evaluation
from megatron_rl.telemetry.jsonl import read_history
from megatron_rl.telemetry.points import Point, finite_or_none

Curve: TypeAlias = list[float | None]

MOST_POINTS = 1500
"""Points a curve may have; a longer run is drawn as means over equal stretches of steps."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one evaluation, placed on every axis."""

    source: str
    measure: str
    step: int
    tokens: int
    seconds: float
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Curves:
    """All numbers of one run. Every curve has one value per entry of `step`; None where there is none."""

    name: str
    step: list[int]
    tokens: list[int]
    seconds: list[float]
    metrics: dict[str, Curve]
    phases: dict[str, Curve]
    measured: list[Measured]
    rollouts: int
    not_finite: int
    """Numbers that were NaN or infinite and are drawn as gaps."""


def read_curves(folder: Path) -> Curves:
    """What the folder's metrics.jsonl holds."""
    history = read_history(folder)
    if not history.points and not history.evaluations:
        raise ValueError(
            f"{folder} holds no metrics.jsonl with a finished step; give a run folder, such as runs/<name>"
        )
    points = history.points
    stretches = _stretches(points)
    last = [stretch[-1] for stretch in stretches]
    return Curves(
        name=folder.resolve().name,
        step=[point.step for point in last],
        tokens=[point.total_tokens for point in last],
        seconds=[round(point.total_seconds, 3) for point in last],
        metrics=_means([[point.metrics for point in stretch] for stretch in stretches]),
        phases=_means([[point.seconds for point in stretch] for stretch in stretches]),
        measured=[one for evaluation in history.evaluations for one in _measured(evaluation, points)],
        rollouts=sum(point.rollouts for point in points),
        not_finite=sum(finite_or_none(value) is None for point in points for value in point.metrics.values()),
    )


def _stretches(points: list[Point]) -> list[list[Point]]:
    size = max(1, -(-len(points) // MOST_POINTS))
    return [points[start : start + size] for start in range(0, len(points), size)]


def _means(stretches: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Curve]:
    """The mean over each stretch of every name that occurs anywhere, in order of first appearance."""
    names = dict.fromkeys(name for stretch in stretches for numbers in stretch for name in numbers)
    return {name: [_mean([numbers.get(name) for numbers in stretch]) for stretch in stretches] for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and finite_or_none(value) is not None]
    return _tidy(sum(finite) / len(finite)) if finite else None


def _tidy(value: float) -> float:
    """Six significant digits are more than a screen shows."""
    return float(f"{value:.6g}")


def _measured(evaluation: Evaluation, points: list[Point]) -> list[Measured]:
    before = [point for point in points if point.step <= evaluation.step]
    tokens, seconds = (before[-1].total_tokens, before[-1].total_seconds) if before else (0, 0.0)
    found = []
    for name, value in evaluation.metrics.items():
        source, _, measure = name.rpartition("/")
        if measure in ("low", "high"):
            continue
        found.append(
            Measured(
                source=source,
                measure=measure,
                step=evaluation.step,
                tokens=tokens,
                seconds=round(seconds, 3),
                value=finite_or_none(value),
                low=finite_or_none(evaluation.metrics.get(f"{name}/low", value)),
                high=finite_or_none(evaluation.metrics.get(f"{name}/high", value)),
            )
        )
    return found
