"""Steps of a run made again beside it, straight and with a stop between, and compared to the bit.

    SCRATCH/straight/NAME    from the checkpoint to the end without a stop
    SCRATCH/resumed/NAME     from the same checkpoint, stopped, saved, taken up again

Where the run itself saved a checkpoint soon after another, it is the straight one, and only the steps between are made
again. The run's folder is read and never written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from megatron_rl.batch.batch import Batch
from megatron_rl.checkpoint import Saved, folders, verify
from megatron_rl.commands.exits import DONE
from megatron_rl.differences import Difference, between_checkpoints, between_rollouts
from megatron_rl.ideas import read_ideas
from megatron_rl.interpreter import command, search_path
from megatron_rl.spec.run import RunSpec

Train = Callable[[Path, int], None]
"""Trains the run whose `run.folder` is given, from its latest checkpoint up to a step, and saves there."""
ALWAYS: Final = (
    "schedule.evaluate_every=0",
    "telemetry.rollouts_every=1",
    "telemetry.rollouts_keep=0",
    "telemetry.sample_every=0",
    "telemetry.wandb=off",
    "cluster.address=''",
    "cluster.machines=0",
)
"""What a rehearsal has otherwise than its run; none of it is part of what is learnt."""


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Rehearsal(run=Path("runs/jspo"), start=Path("…/step_000050"), first=50, stop=52, last=54, end=None)."""

    run: Path
    start: Path | None
    """The checkpoint to go on from; None where the run has none, and is begun."""
    first: int
    """Its step."""
    stop: int
    """Where the resumed one stops and is taken up again; `first` where it is only taken up."""
    last: int
    end: Path | None
    """The run's own checkpoint of the last step; None makes the straight steps here."""

    @property
    def steps(self) -> range:
        """The steps that are made, as they count once they are done."""
        return range(self.first + 1, self.last + 1)

    def __str__(self) -> str:
        which = f"step {self.last}" if len(self.steps) == 1 else f"steps {self.first + 1} to {self.last}"
        whence = f"taken up at {self.start.name}" if self.start else "begun"
        if self.end is not None:
            return f"{which} of {self.run}, {whence} against the run itself"
        return f"{which} of {self.run}, {whence}, straight against stopped after step {self.stop}"


def plan_rehearsal(run: Path, steps: int) -> Rehearsal:
    """The run's two newest checkpoints where at most `steps` lie between; else so many steps after the newest."""
    saved = [verify(folder) for folder in folders(run / "checkpoints")[-2:]]
    if len(saved) == 2 and _is_stretch(saved[0], saved[1], steps):
        start, end = saved
        return Rehearsal(run=run, start=start.folder, first=start.step, stop=start.step, last=end.step, end=end.folder)
    first = saved[-1].step if saved else 0
    start_folder = saved[-1].folder if saved else None
    return Rehearsal(
        run=run, start=start_folder, first=first, stop=first + max(1, steps // 2), last=first + steps, end=None
    )


def rehearse(plan: Rehearsal, spec: RunSpec, scratch: Path, train: Train) -> Difference | None:
    """Makes the steps and returns the first thing in which they differ; None where every bit is the same."""
    name = str(spec.settings["run"].values["name"])
    straight, resumed = (scratch / half / name for half in ("straight", "resumed"))
    if plan.end is None:
        _begin(plan, straight)
        train(straight.parent, plan.last)
    _begin(plan, resumed)
    if plan.stop > plan.first:
        train(resumed.parent, plan.stop)
    train(resumed.parent, plan.last)
    compared = plan.run if plan.end is not None else straight
    found = next(_between_steps(plan.steps, compared, resumed, _writers(spec)), None)
    return found or between_checkpoints(plan.end or _last(straight), _last(resumed))


def by_command(config: Path, settings: tuple[str, ...], scratch: Path) -> Train:
    """Trains in processes of their own, as a user would; RuntimeError with the end of what a failed one said."""

    def train(folder: Path, last: int) -> None:
        log = scratch / f"{folder.name}.log"
        schedule = (f"schedule.steps={last}", f"schedule.save_every={last}", f"run.folder={folder}")
        train_again = command("megatron_rl.cli", "train", str(config), *ALWAYS, *schedule, *settings)
        env = os.environ | search_path()
        with log.open("ab") as stream:
            done = subprocess.run(
                train_again, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False
            )
        if done.returncode != DONE:
            said = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"the {folder.name} steps up to {last} ended with code {done.returncode}: "
                f"{said[-1] if said else 'it said nothing'} (all of it is in {log})"
            )

    return train


def _is_stretch(start: Saved, end: Saved, steps: int) -> bool:
    """Whether one layout led from the one to the other in so few steps."""
    return 0 < end.step - start.step <= steps and start.facts.get("cut") == end.facts.get("cut")


def _begin(plan: Rehearsal, folder: Path) -> None:
    """A run's folder with the checkpoint to go on from; `latest` is not needed where there is but one."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    if plan.start is not None:
        shutil.copytree(plan.start, checkpoints / plan.start.name, copy_function=_link)


def _link(source: str, target: str) -> None:
    """A second name for a file that nobody writes again; a copy where the file system knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _last(run: Path) -> Path:
    return folders(run / "checkpoints")[-1]


def _between_steps(steps: range, straight: Path, resumed: Path, writers: Mapping[str, str]) -> Iterator[Difference]:
    """Step by step, of those whose rollouts both have kept: a run may have thinned its own."""
    for step in steps:
        one, other = (run / "rollouts" / f"step_{step:06d}.parquet" for run in (straight, resumed))
        if one.is_file() and other.is_file():
            found = between_rollouts(Batch.read_parquet(one), Batch.read_parquet(other), writers)
            if found is not None:
                yield Difference(place=f"step {step}, {found.place}", straight=found.straight, resumed=found.resumed)


def _writers(spec: RunSpec) -> dict[str, str]:
    ideas = read_ideas(spec)
    return {column.name: name for name, stage in (*ideas.collect, *ideas.learn) for column in stage.writes}
