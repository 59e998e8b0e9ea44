"""Runs a chain of stages on the rollouts that a run has kept, and shows what changes.

megatron-rl replay runs/quickstart 12                                          # as it was, to the bit
megatron-rl replay runs/quickstart 12 learn='[shrinkage_baseline, advantage]'  # as it would have been
megatron-rl replay runs/quickstart 12 --chain collect reward=gsm8k             # graded otherwise
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_rl.commands.configuration import checked
from megatron_rl.commands.exits import DONE, FAILED
from megatron_rl.spec.schema import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("step", type=int, metavar="STEP", help="the finished step whose rollouts are meant")
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="settings laid over the run's own")
    parser.add_argument("--chain", choices=("learn", "collect"), default="learn", help="the chain to run")
    parser.add_argument("--out", type=Path, help="a Parquet file for the batch that comes out")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.folder / "rollouts" / f"step_{arguments.step:06d}.parquet"
    if not path.is_file():
        there = sorted(file.stem for file in path.parent.glob("step_*.parquet"))
        raise SpecError(f"{path} is not there; {arguments.folder} kept {_range(there)}.")
    spec = checked(arguments.folder / "spec.yaml", arguments.settings)
    from megatron_rl.assemble import replayed
    from megatron_rl.replay import ReplayError

    try:
        found = replayed(spec, arguments.chain, path, arguments.folder / "checkpoints", arguments.step)
    except ReplayError as error:
        print(error, file=sys.stderr)
        return FAILED
    for change in found.changes:
        print(change)
    for name in found.skipped:
        print(f"stage {name} was not run: it needs the engine or the actor; its columns are as recorded")
    for name, value in sorted(found.metrics.items()):
        print(f"  {name} = {value:.6g}")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        found.batch.write_parquet(arguments.out)
        print(arguments.out)
    return DONE


def _range(names: list[str]) -> str:
    return f"{names[0]} to {names[-1]} ({len(names)} files)" if names else "no rollouts"
