"""What the driver itself costs: everything of a step that is not engine, actor, weights on their way or reward.

    python -m tools.bench_driver [CONFIG] [key=value …] [--steps 20] [--rows 10000]

Trains CONFIG (configs/quickstart.yaml, whose data `make quickstart` makes) in this process and prints the driver's
share of a step: wall-clock less the seconds inside the machines' own methods, so sampler, buffer, stages, loop, metrics
and files are all in it. Then, for every shipped configuration, the milliseconds of its stages on so many rollouts of 64
to 512 tokens; engine, actor and critic answer at once there, so that only the stages' own work is seen.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from megatron_rl import loop
from megatron_rl.assemble import assemble, close
from megatron_rl.batch import columns
from megatron_rl.batch.batch import Batch, Values
from megatron_rl.batch.columns import Column
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ideas import Ideas, read_ideas
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context, Stage, Update
from megatron_rl.spec.load import SHIPPED, load

MACHINES = {
    "engine": ("generate", "score", "laws"),
    "actor": ("update", "score"),
    "judge": ("judge",),
    "critic": ("value", "update"),
}
GROUP_SIZE = 8
SHORTEST, LONGEST = 64, 512
WARM = 3
"""Steps that are not counted: caches fill, memory is asked for."""
WORDS = {"finish": "stop", "status": "ok", "verdict": "wrong", "extra": "{}", "prefix_finish": ""}


@dataclass
class Stopwatch:
    """Seconds inside the watched methods, and where both clocks stood at each publish."""

    inside: float = 0.0
    depth: int = 0
    marks: list[tuple[float, float]] = field(default_factory=list)

    def watch(self, method: Callable[..., object]) -> Callable[..., object]:
        def watched(*given: object, **named: object) -> object:
            began, self.depth = time.perf_counter(), self.depth + 1
            try:
                return method(*given, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.inside += time.perf_counter() - began

        return watched

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), self.inside))

    @property
    def steps(self) -> list[tuple[float, float]]:
        """For each step after the warm ones its wall-clock seconds and those of them outside the machines."""
        pairs = zip(self.marks[WARM:], self.marks[WARM + 1 :], strict=False)
        return [(end - start, end - start - (after - before)) for (start, before), (end, after) in pairs]


def watched_run(run: loop.Run, stopwatch: Stopwatch) -> None:
    """Puts the stopwatch around the machines' methods, on the objects themselves."""
    for name, methods in MACHINES.items():
        machine = run.machines.get(name)
        for method in methods:
            if machine is not None and hasattr(machine, method):
                setattr(machine, method, stopwatch.watch(getattr(machine, method)))
    publish = stopwatch.watch(run.weights.publish)

    def marked(version: int) -> int:
        published = publish(version)
        stopwatch.mark()
        return int(str(published))

    run.weights.publish = marked  # type: ignore[method-assign]


def share_of_a_step(config: Path, overrides: Sequence[str], steps: int) -> float:
    """Prints and returns the driver's share."""
    with tempfile.TemporaryDirectory() as folder:
        schedule = (f"schedule.steps={steps + WARM}", "schedule.save_every=0", "schedule.evaluate_every=0")
        run = assemble(load(config, (*overrides, *schedule, f"run.folder={folder}")))
        stopwatch = Stopwatch()
        try:
            watched_run(run, stopwatch)
            run.telemetry.start(0, steps + WARM)
            loop.train(run)
        finally:
            close(run, "finished")
    wall, outside = (np.array(seconds) for seconds in zip(*stopwatch.steps, strict=True))
    share = float(outside.sum() / wall.sum())
    print(f"a step of {config.stem}  {1e3 * wall.mean():8.1f} ms, mean of {len(wall)}")
    print(f"the driver's part  {1e3 * outside.mean():8.2f} ms, median {1e3 * np.median(outside):.2f} ms")
    print(f"its share          {100 * share:8.2f} %")
    print(f"peak memory        {peak_mib(resource.RUSAGE_SELF):8.0f} MiB, actor and embedded engine included")
    return share


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


@dataclass(frozen=True, kw_only=True)
class AtOnce:
    """Engine, actor and critic that have the answer ready."""

    answer: Ragged

    def score(self, batch: Batch, policy: str = "current") -> Ragged:
        return self.answer

    def value(self, batch: Batch) -> Ragged:
        return self.answer

    def update(self, batch: Batch) -> Update:
        return Update(metrics={}, steps=1)


def rollouts(rows: int, seed: int = 0) -> Batch:
    """Judged rollouts with every column of the data dictionary that a stage may read."""
    rng = np.random.default_rng(seed)
    length_B = torch.from_numpy(rng.integers(SHORTEST, LONGEST + 1, size=rows))
    return Batch.of({column: _values(column, length_B, rng) for column in columns.DICTIONARY.values()})


def _values(column: Column, length_B: torch.Tensor, rng: np.random.Generator) -> Values:
    rows = len(length_B)
    if column.is_ragged:
        length_B = {columns.REFERENCE_REWARDS: torch.full((rows,), GROUP_SIZE)}.get(column, length_B)
        count = int(length_B.sum())
        if column.type == columns.TOKEN_FLOATS:
            flat = torch.from_numpy(rng.random(count, dtype=np.float32))
            return Ragged.from_lengths(flat.round() if column is columns.REFERENCE_REWARDS else -flat, length_B)
        kind = torch.uint8 if column.type == columns.TOKEN_FLAGS else torch.int32
        return Ragged.from_lengths(torch.ones(count, dtype=kind), length_B)
    group_B = np.arange(rows) // GROUP_SIZE
    named: dict[Column, Values] = {
        columns.GROUP: group_B,
        columns.SLOT: np.arange(rows) % GROUP_SIZE,
        columns.PROMPT_ID: [f"prompt-{group}" for group in group_B],
        columns.SEED: np.arange(rows),
        columns.PHASE: [("screen", "continue")[group % 2] for group in group_B],
        columns.CORRECT: rng.integers(0, 2, size=rows),
        columns.VERSION: np.zeros(rows),
    }
    if column in (columns.REWARD, columns.DRAW_ODDS, columns.BASELINE, columns.SPREAD):
        return rng.random(rows).round(2) + 0.01
    if column in named:
        return named[column]
    if column.type == columns.STRING:
        return [WORDS.get(column.name, "words")] * rows
    return np.full(rows, 1 if column.default is None else column.default)


def collecting(ideas: Ideas) -> tuple[tuple[str, Stage], ...]:
    """Of the collect chain what asks no machine."""
    return tuple((name, stage) for name, stage in ideas.collect if not getattr(type(stage), "uses", ()))


def known(ideas: Ideas, batch: Batch) -> Batch:
    """The columns that are there once rollouts have been drawn, written and judged."""
    collected = [column for _, stage in ideas.collect for column in stage.writes]
    learnt = {column.name for _, stage in ideas.learn for column in stage.writes}
    asked = [
        column for _, stage in (*collecting(ideas), *ideas.learn) for column in stage.reads if column.name not in learnt
    ]
    there = {column.name: column for column in (*DRAWN, *ideas.sampler.writes, *collected, *asked)}
    return batch.select(there.values())


def milliseconds(stage: Stage, batch: Batch, context: Context) -> tuple[Batch, float]:
    """What the stage makes of the batch, and the best of three times; memory is that of a step before."""
    asked = batch.without(*[column for column in stage.writes if column not in stage.reads])
    _, memory = stage(asked, None, context)
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        written, _ = stage(asked, memory, replace(context, step=context.step + 1))
        taken.append(1e3 * (time.perf_counter() - began))
    is_same = all(
        torch.equal(written.numbers(column), batch.numbers(column)) for column in (columns.GROUP, columns.SLOT)
    )
    return (written if is_same else batch), min(taken)


def stages_of(config: Path, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of each stage, of `collect` and of `learn`."""
    machine = AtOnce(answer=batch.ragged(columns.SAMPLER_LOGPROBS))
    context = Context(step=9, version=0, seed=0, machines=dict.fromkeys(("engine", "actor", "critic"), machine))
    ideas = read_ideas(load(config, ()))
    batch = known(ideas, batch)
    collect: dict[str, float] = {}
    learn: dict[str, float] = {}
    for taken, stages in ((collect, collecting(ideas)), (learn, ideas.learn)):
        for name, stage in stages:
            batch, taken[name] = milliseconds(stage, batch, context)
    return collect, learn


def _listed(taken: dict[str, float]) -> str:
    return "  ".join(f"{name} {each:.1f}" for name, each in taken.items())


def all_stages(rows: int) -> float:
    """Prints every configuration's stages; returns the milliseconds of the slowest learn chain."""
    batch, slowest = rollouts(rows), 0.0
    print(f"stages on {rows} rollouts, {int(batch.ragged(columns.TOKENS).length_B.sum()) / 1e6:.1f} M tokens, in ms:")
    for config in sorted(SHIPPED.glob("*.yaml")):
        collect, learn = stages_of(config, batch)
        slowest = max(slowest, sum(learn.values()))
        print(f"  {config.stem:18s} {sum(learn.values()):7.1f}   {_listed(learn)}")
        if collect:
            print(f"  {'':18s} {'':7s}   in collect: {_listed(collect)}")
    print(f"slowest learn chain{slowest:8.1f} ms")
    print(
        f"peak memory        {peak_mib(resource.RUSAGE_SELF):8.0f} MiB, {batch.table.nbytes / 2**20:.0f} of it rollouts"
    )
    return slowest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=SHIPPED / "quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure; 0 measures the stages only")
    parser.add_argument("--rows", type=int, default=10_000, help="rollouts of the stages; 0 measures the step only")
    asked = parser.parse_args(arguments)
    if asked.steps:
        share_of_a_step(asked.config, asked.overrides, asked.steps)
    if asked.rows:
        all_stages(asked.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
