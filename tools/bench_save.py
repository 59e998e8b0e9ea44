"""Prints how long a run stands still for a checkpoint that it waits for, and for one that is written beside its steps.

    python tools/bench_save.py [--hidden 512] [--layers 6] [--rows 16] [--steps 8] [--rounds 3]

One rank learns `--steps` times after each save. Rounds of both ways alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file runs as a script, from anywhere

from megatron_rl.actor import groups
from megatron_rl.actor.megatron_actor import MegatronActor, Origin
from megatron_rl.actor.precision import Precision
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.objectives.likelihood import Likelihood
from megatron_rl.saver import Saver
from tools.bench_actor import random_batch, write_model
from tools.plain_decoder import Sizes


class Period(NamedTuple):
    """From the beginning of a save through the steps after it, in seconds."""

    still: float
    """Before the first step."""
    whole: float
    landed: float
    """From the beginning of the save until it was on disk."""


def period(saver: Saver, actor: MegatronActor, step: int, batches: list[Batch], waits: bool) -> Period:
    began = time.perf_counter()
    saver.begin(step, actor, None, {})
    if waits:
        saver.finish()
    still = time.perf_counter() - began
    for batch in batches:
        actor.update(batch, Likelihood())
    whole = time.perf_counter() - began
    saver.finish()
    return Period(still, whole, saver.landed_s)


def line(name: str, periods: list[Period]) -> str:
    still, whole, landed = (statistics.median(each) for each in zip(*periods, strict=True))
    return f"{name:<24}{still:>12.3f}{whole:>12.3f}{landed:>12.3f}"


def compare(sizes: Sizes, rows: int, steps: int, rounds: int, scratch: Path) -> list[str]:
    """The table, and what is beside as ratios of what is waited for; the process has joined as the only rank."""
    (scratch / "model").mkdir()
    count = sum(weight.numel() for weight in write_model(scratch / "model", sizes).values())
    settings = ActorSettings(precision=Precision(compute="fp32"))
    groups.cut(settings)
    actor = MegatronActor(settings, Origin(folder=scratch / "model"))
    batches = [random_batch(rows, seed, sizes.vocabulary, even=False) for seed in range(steps)]
    saver, step = Saver(root=scratch / "checkpoints", keep=1), 0
    ways: dict[bool, list[Period]] = {True: [], False: []}
    for _ in range(rounds + 1):  # the first of each warms up
        for waits, periods in ways.items():
            periods.append(period(saver, actor, step, batches, waits))
            step += 1
    waited, beside = (periods[1:] for periods in ways.values())
    size = sum(path.stat().st_size for path in scratch.joinpath("checkpoints").rglob("*") if path.is_file())
    stills, wholes = ([statistics.median(each[place] for each in way) for way in (waited, beside)] for place in (0, 1))
    return [
        f"{count:,} parameters, {size / 2**20:.0f} MiB a checkpoint, {steps} steps of {rows} rollouts after each",
        f"{'seconds':<24}{'still':>12}{'save+steps':>12}{'on disk':>12}",
        line("waited for", waited),
        line("beside", beside),
        f"a save beside keeps the run {stills[1] / stills[0]:.2f} times as long, "
        f"a save with its steps takes {wholes[1] / wholes[0]:.2f} times as long",
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 512), ("layers", 6), ("rows", 16), ("steps", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args(arguments)
    sizes = Sizes(hidden=asked.hidden, layers=asked.layers, heads=asked.hidden // 32, kv_heads=1, ffn=3 * asked.hidden)
    groups.join_alone()
    with tempfile.TemporaryDirectory() as scratch:
        print(*compare(sizes, asked.rows, asked.steps, asked.rounds, Path(scratch)), sep="\n")
    groups.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
