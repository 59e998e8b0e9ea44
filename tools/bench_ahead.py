"""What collecting ahead saves: seconds of a step without it and with it, side by side.

    python -m tools.bench_ahead [CONFIG] [key=value …] [--ahead 0 1] [--steps 10] [--rounds 2]

Trains CONFIG (configs/grpo_asynchronous.yaml on the quickstart's task, whose data `make quickstart` makes) once a way
and round, in turn, so that what else the machine does falls on all of them alike. The first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from megatron_rl.spec.load import SHIPPED

CONFIG, TASK = SHIPPED / "grpo_asynchronous.yaml", "extends=base/toy.yaml"
WARM = 2
"""Steps that are not counted: caches fill, and the first batches are all of one version."""
PHASES = {"stood still": ("collect",), "learnt": ("learn", "update"), "published": ("publish",)}

Step = Mapping[str, float]


def measure(settings: Sequence[str], ahead: int, steps: int) -> list[Step]:
    """What every counted step of one run told."""
    with tempfile.TemporaryDirectory() as folder:
        return train(settings, ahead, steps, Path(folder))


def train(settings: Sequence[str], ahead: int, steps: int, folder: Path) -> list[Step]:
    """What every counted step of one run told, whose own folder is `run` in this one."""
    asked = [
        *(f"run.folder={folder}", "run.name=run", f"schedule.ahead={ahead}", f"schedule.steps={steps + WARM}"),
        *("schedule.save_every=0", "schedule.evaluate_every=0"),
    ]
    command = [sys.executable, "-m", "megatron_rl.cli", "train", *settings, *asked]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"the run with schedule.ahead={ahead} failed: {made.stderr.strip().splitlines()[-1]}")
    told = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [point for point in told if point["kind"] == "step" and point["step"] > WARM]


def row(steps: Sequence[Step]) -> dict[str, float]:
    """Mean seconds of a step, by what the learner did, and what the engine did beside it."""
    spent = {
        name: mean(sum(step.get(f"seconds/{phase}", 0.0) for phase in phases) for step in steps)
        for name, phases in PHASES.items()
    }
    hidden = mean(step.get("ahead/hidden_seconds", 0.0) for step in steps)
    return {
        "step": sum(spent.values()),
        **spent,
        "hidden": hidden,
        "age": mean(step["buffer/age_max"] for step in steps),
    }


def line(ahead: int, told: Mapping[str, float]) -> str:
    return "  ".join([f"{ahead:>5}", *(f"{value:>11.3f}" for value in told.values())])


def verdict(rows: Sequence[tuple[int, Mapping[str, float]]]) -> str:
    """The mean step of each way, and what it is of the first way's."""
    ways = list(dict.fromkeys(ahead for ahead, _ in rows))
    steps = {way: mean(told["step"] for ahead, told in rows if ahead == way) for way in ways}
    first = ways[0]
    return "\n".join(
        f"ahead {way}: {steps[way]:.3f} s a step, {steps[way] / steps[first]:.2f} of ahead {first}" for way in ways
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="CONFIG key=value")
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_intermixed_args(arguments)
    given = asked.settings
    settings = given if given and "=" not in given[0] else [str(CONFIG), TASK, *given]
    rows: list[tuple[int, dict[str, float]]] = []
    for ahead in asked.ahead * asked.rounds:
        rows.append((ahead, row(measure(settings, ahead, asked.steps))))
        if len(rows) == 1:
            print("  ".join(["ahead", *(f"{name:>11}" for name in rows[0][1])]))
        print(line(*rows[-1]), flush=True)
    print(verdict(rows))


if __name__ == "__main__":
    main()
