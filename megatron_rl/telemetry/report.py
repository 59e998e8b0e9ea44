"""The report: one or several runs as one HTML file that opens anywhere, offline.

It holds at most 1,500 points a curve and, of the rollouts, at most 24 steps x 6 groups x 8 rollouts a run, at most
1,200 tokens of each and 300,000 tokens together, shared by the runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from megatron_rl.telemetry.curves import Curves, read_curves
from megatron_rl.telemetry.excerpts import Bounds, Excerpt, excerpt
from megatron_rl.telemetry.page import page
from megatron_rl.telemetry.panels import GAPS, LEARNING, other_panels, panels

_MOST_SPEC = 40_000


def report(folders: Sequence[Path], out: Path, bounds: Bounds | None = None) -> Path:
    """Writes `out`, whole or not at all, and returns it."""
    if not folders:
        raise ValueError("a report needs at least one run folder, got none")
    data = report_data(folders, bounds or Bounds())
    names = [run["name"] for run in data["runs"]]  # type: ignore[attr-defined]
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    aside.write_text(page(" · ".join(names), data), encoding="utf-8")
    os.replace(aside, out)
    return out


def report_data(folders: Sequence[Path], bounds: Bounds) -> dict[str, object]:
    """All that the page draws, as plain values."""
    share = replace(bounds, total_tokens=bounds.total_tokens // len(folders))
    curves = [read_curves(folder) for folder in folders]
    names = _distinct([run.name for run in curves], folders)
    metrics = [run.metrics for run in curves]
    learning, gaps = panels(LEARNING, metrics), panels(GAPS, metrics)
    rest = other_panels([*learning, *gaps], metrics)
    return {
        "runs": [
            _run(name, run, excerpt(folder, share), _spec(folder))
            for name, run, folder in zip(names, curves, folders, strict=True)
        ],
        "learning": [asdict(panel) for panel in learning],
        "parity": [asdict(panel) for panel in gaps],
        "rest": {family: [asdict(panel) for panel in found] for family, found in rest.items()},
        "bounds": asdict(share),
    }


def _run(name: str, curves: Curves, shown: Excerpt, spec: str) -> dict[str, object]:
    return {**asdict(curves), "name": name, "samples": asdict(shown), "spec": spec}


def _distinct(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Names that tell the runs apart: with their parent folder where two are called the same."""
    return [
        name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]


def _spec(folder: Path) -> str:
    path = folder / "spec.yaml"
    return path.read_text(encoding="utf-8", errors="replace")[:_MOST_SPEC] if path.exists() else ""
