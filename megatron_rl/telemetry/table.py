"""The console's step table: which columns there are, and which of them fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from megatron_rl.telemetry.points import Point


@dataclass(frozen=True, kw_only=True)
class StepColumn:
    """A heading, the metrics it may show (the first pattern that matches), how to write the number, and its width."""

    heading: str
    patterns: tuple[str, ...]
    form: Callable[[float], str]
    width: int = 8


def short(value: float) -> str:
    """At most seven characters: 0.123, 1.2e-06, 12.3, 4567, 12k, 3.4M."""
    size = abs(value)
    if size >= 1e4:
        return next(
            (
                f"{value / unit:.3g}{mark}"
                for unit, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
                if size >= unit
            ),
            "",
        )
    if size and size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if size < 10 else f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def duration(seconds: float) -> str:
    """4.2s, 3:05, 2:03:05, 3d 04h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# In the order in which a narrowing terminal keeps them.
COLUMNS = (
    StepColumn(heading="reward", patterns=("reward/mean",), form=short),
    StepColumn(heading="right", patterns=("correct/mean",), form=percent, width=7),
    StepColumn(heading="length", patterns=("length/mean",), form=short, width=7),
    StepColumn(heading="step in", patterns=("$seconds",), form=duration, width=8),
    StepColumn(heading="entropy", patterns=("entropy", "*/entropy", "*entropy*"), form=short),
    StepColumn(heading="loss", patterns=("loss", "*/loss", "*loss*"), form=short, width=9),
    StepColumn(heading="gradient", patterns=("grad_norm", "*/grad_norm", "*grad*norm*"), form=short, width=9),
    StepColumn(heading="kl", patterns=("kl/reference", "kl", "*/kl", "*kl*"), form=short, width=9),
    StepColumn(heading="parity", patterns=("parity/mean",), form=short, width=9),
    StepColumn(heading="cut", patterns=("length/cut",), form=percent, width=7),
    StepColumn(heading="tokens/s", patterns=("$speed",), form=short, width=9),
)


def first_match(metrics: Collection[str], patterns: tuple[str, ...]) -> str | None:
    """The name of the metric that the earliest pattern matches."""
    return next((name for pattern in patterns for name in _matching(metrics, pattern)), None)


def _matching(metrics: Collection[str], pattern: str) -> Iterator[str]:
    if "*" not in pattern:
        return iter((pattern,) if pattern in metrics else ())
    return (name for name in metrics if fnmatchcase(name, pattern))


def cells(point: Point) -> dict[str, str]:
    """What each column shows for this step, in the order of `COLUMNS`; columns without a number are left out."""
    seconds = sum(point.seconds.values())
    training = seconds - point.seconds.get("evaluate", 0.0)  # whose tokens are not among the step's
    numbers = {"$seconds": seconds, "$speed": point.tokens / training if training else 0.0, **point.metrics}
    named = {column: first_match(numbers, column.patterns) for column in COLUMNS}
    return {column.heading: column.form(numbers[name]) for column, name in named.items() if name is not None}


def fitting(point: Point, width: int, taken: int) -> list[StepColumn]:
    """The columns with a number that fit beside `taken` characters."""
    present = cells(point)
    chosen: list[StepColumn] = []
    for column in COLUMNS:
        if column.heading in present and taken + column.width + 1 <= width:
            taken += column.width + 1
            chosen.append(column)
    return chosen


def heading_line(columns: list[StepColumn], label_width: int) -> str:
    return " ".join(["step".rjust(label_width), *(column.heading.rjust(column.width) for column in columns)])


def step_line(point: Point, columns: list[StepColumn], label_width: int) -> str:
    present = cells(point)
    return " ".join(
        [
            str(point.step).rjust(label_width),
            *(present.get(column.heading, "").rjust(column.width) for column in columns),
        ]
    )


def sober_line(point: Point, steps: int) -> str:
    """One line that says everything, for logs."""
    facts = "  ".join(f"{heading} {value}" for heading, value in cells(point).items())
    return f"step {point.step}/{steps}  {facts}"
