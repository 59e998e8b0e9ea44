"""metrics.jsonl: one line of plain numbers a step and an evaluation, readable by anything.

Flushed at every line. A resumed run first drops the lines of steps it will make again, so a curve never has a step
twice. Numbers that are not finite are written as text ("NaN", "Infinity"), since JSON has no word for them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from megatron_rl.batch.batch import Batch
from megatron_rl.ports import Evaluation
from megatron_rl.telemetry.points import WHOLE, Point, evaluation_of, flat, point_of
from megatron_rl.telemetry.sink import RunFacts, writing

FILE = "metrics.jsonl"
KINDS = ("step", "evaluation")


class History(NamedTuple):
    """What a metrics.jsonl tells, in order of steps, each step once."""

    points: list[Point]
    evaluations: list[Evaluation]


class JsonlFile:
    """Writes `folder/metrics.jsonl`."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._evaluated: set[int] = set()

    def start(self, run: RunFacts) -> None:
        self._path = run.folder / FILE
        with writing(self._path):
            run.folder.mkdir(parents=True, exist_ok=True)
            truncate(self._path, run.step)
        self._evaluated = {evaluation.step for evaluation in read_history(run.folder).evaluations}

    def wave(self, done: int, total: int, tokens: int) -> None:
        """Waves leave no line."""

    def step(self, point: Point, batch: Batch) -> None:
        self._append("step", flat(point))

    def evaluation(self, evaluation: Evaluation) -> None:
        """A resumed run may measure its first step again; the line it left before stands."""
        if evaluation.step not in self._evaluated:
            self._evaluated.add(evaluation.step)
            self._append("evaluation", flat(evaluation))

    def close(self, reason: str) -> None:
        """Nothing is held open between lines."""

    def _append(self, kind: str, numbers: Mapping[str, float]) -> None:
        if self._path is None:
            raise RuntimeError("metrics.jsonl was written to before the run started; call start() first")
        with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind} | {name: _plain(value) for name, value in numbers.items()}) + "\n")


def truncate(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, and a line that a crash left unfinished."""
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in _lines(path) if float(line["step"]) <= step]
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)


def read_history(folder: Path) -> History:
    """The steps and evaluations a run folder has kept; empty where it has kept none."""
    points: dict[int, Point] = {}
    evaluations: dict[int, Evaluation] = {}
    path = folder / FILE
    for line in _lines(path) if path.exists() else ():
        numbers = {name: float(value) for name, value in line.items() if name != "kind"}
        if line["kind"] == "step":
            points[int(numbers["step"])] = point_of(numbers)
        else:
            evaluations[int(numbers["step"])] = evaluation_of(numbers)
    return History([points[step] for step in sorted(points)], [evaluations[step] for step in sorted(evaluations)])


def _lines(path: Path) -> Iterator[dict[str, str]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _checked(json.loads(line))
        except (ValueError, OverflowError, RecursionError) as error:
            # Only the end of the file can be the victim of a crash; the line end is written with its line.
            if number != len(lines) or not isinstance(error, json.JSONDecodeError):
                what = "not JSON" if isinstance(error, json.JSONDecodeError) else f"no line of metrics, {error}"
                raise ValueError(f"{path}, line {number}: {what} ({line[:60]!r}); remove that line to go on") from None


def _checked(line: object) -> dict[str, str]:
    """The line, where it is one that `_append` could have written."""
    if not isinstance(line, dict) or line.get("kind") not in KINDS:
        raise ValueError(f"whose 'kind' should be one of {', '.join(KINDS)}")
    if wrong := [name for name, value in line.items() if name != "kind" and not isinstance(value, int | float | str)]:
        raise ValueError(f"whose {wrong[0]!r} is no number")
    numbers = {name: float(value) for name, value in line.items() if name != "kind"}
    wanted = (*WHOLE, "total_seconds") if line["kind"] == "step" else ("step",)
    if wrong := [name for name in wanted if not math.isfinite(numbers.get(name, math.nan))]:
        raise ValueError(f"whose {wrong[0]!r} is missing or not finite")
    return line


def _plain(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
