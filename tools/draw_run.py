"""Draws what a run is about in one picture: who answers rightly, and how long the answers are.

python tools/draw_run.py runs/quickstart docs/quickstart.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

OURS, THEIRS = "#1f5fa8", "#b5460f"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("picture", type=Path, help="an .svg file")
    options = parser.parse_args(arguments)
    try:
        lines = (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        print(f"cannot read the metrics of {options.run}: {error.strerror}", file=sys.stderr)
        return 1
    points = [json.loads(line) for line in lines]
    with rc_context({"svg.hashsalt": "run", "font.size": 9}):  # the same run is the same file
        figure([point for point in points if point["kind"] == "step"], evaluations(points)).savefig(
            options.picture, metadata={"Date": None}
        )
    return 0


def evaluations(points: Sequence[dict]) -> list[tuple[int, float, float, float]]:
    """Step, pass@1 and its interval, of the first source."""
    found = []
    for point in points:
        name = next((name for name in point if name.endswith("/pass@1")), None)
        if point["kind"] == "evaluation" and name is not None:
            found.append((point["step"], point[name], point[f"{name}/low"], point[f"{name}/high"]))
    return found


def figure(steps: Sequence[dict], held_out: Sequence[tuple[int, float, float, float]]) -> Figure:
    drawn = Figure(figsize=(8, 2.6), layout="constrained")
    right, length = drawn.subplots(1, 2)
    number = [step["step"] for step in steps]
    right.plot(number, [step["correct/mean"] for step in steps], color=OURS, label="training prompts, sampled")
    if held_out:
        at, share, low, high = zip(*held_out, strict=True)
        errors = [
            [s - one for s, one in zip(share, low, strict=True)],
            [o - s for s, o in zip(share, high, strict=True)],
        ]
        right.errorbar(at, share, errors, fmt="o", color=THEIRS, capsize=3, label="held-out prompts, 95 %")
    right.set(xlabel="step", title="right answers", ylim=(0, 1))
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.legend(loc="lower right", frameon=False)
    length.plot(number, [step["length/mean"] for step in steps], color=OURS)
    length.set(xlabel="step", title="tokens a response", ylim=(0, None))
    for axes in (right, length):
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
