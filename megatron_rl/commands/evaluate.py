"""Measures a run's checkpoint, or a configuration's model, on held-out prompts.

megatron-rl evaluate runs/quickstart --step 50 evaluation.samples=16
megatron-rl evaluate configs/quickstart.yaml model.folder=exported
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from megatron_rl.commands.configuration import add_configuration, checked, folder_of
from megatron_rl.commands.exits import DONE
from megatron_rl.ports import Evaluation
from megatron_rl.spec.run import RunSpec
from megatron_rl.spec.schema import SpecError

KEPT = "evaluations"
"""Where a run's folder keeps what was measured later."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser, "folder of a run, whose checkpoint is measured, or a YAML file, whose model is")
    parser.add_argument("--step", type=int, help="the checkpoint of this step; the latest otherwise")


def run(arguments: argparse.Namespace) -> int:
    folder = arguments.config if arguments.config.is_dir() else None
    if folder is None and arguments.step is not None:
        raise SpecError(f"--step {arguments.step} is a checkpoint of a run, but {arguments.config} is no folder.")
    source = arguments.config if folder is None else folder / "spec.yaml"
    # Its telemetry, should there be any, is not the run's.
    spec = checked(source, [*arguments.settings, *([] if folder is None else [f"run.folder={folder / KEPT}"])])
    if not spec.settings["data"].values["evaluate"]:
        raise SpecError(f"{source}: data.evaluate is empty; name the files of held-out prompts.")
    found = _measure(spec, None if folder is None else _checkpoint(folder, arguments.step))
    for line in table(found):
        print(line)
    path = (folder / KEPT if folder else folder_of(spec) / KEPT) / f"step_{found.step:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": found.step, "metrics": dict(found.metrics)}, indent=1) + "\n")
    print(path)
    return DONE


def table(found: Evaluation) -> Sequence[str]:
    """One line a source and measure, with its interval where it has one."""
    lines = [f"after step {found.step}"]
    for name, value in found.metrics.items():
        if not name.endswith(("/low", "/high")):
            low, high = found.metrics.get(f"{name}/low"), found.metrics.get(f"{name}/high")
            interval = "" if low is None or high is None else f"  [{low:.4f}, {high:.4f}]"
            lines.append(f"  {name:<32} {value:10.4f}{interval}")
    return lines


def _checkpoint(folder: Path, step: int | None) -> Path:
    from megatron_rl import checkpoint

    root = folder / "checkpoints"
    found = checkpoint.latest(root) if step is None else root / f"step_{step:06d}"
    if found is None or not found.is_dir():
        there = ", ".join(sorted(path.name for path in root.glob("step_*"))) or "none"
        raise SpecError(f"{folder} has no checkpoint{'' if step is None else f' of step {step}'}; there is {there}.")
    return found


def _measure(spec: RunSpec, saved: Path | None) -> Evaluation:
    from megatron_rl import checkpoint
    from megatron_rl.assemble import assemble, close

    run = assemble(spec)
    try:
        if saved is not None:
            run.step = checkpoint.load(saved, run.actor)[0].step
        run.weights.publish(run.step)
        assert run.evaluator is not None, "data.evaluate was looked at before"
        return run.evaluator.evaluate(run.step)
    finally:
        close(run, "finished")
