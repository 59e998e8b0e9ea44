"""The door to wandb: the same names as metrics.jsonl, and one curve per run however often it was resumed.

The run folder keeps `wandb.json`: the id of the wandb run and the last step it was shown. A resumed run rejoins that
id and does not repeat steps it has shown before; a resume equals never having stopped, so they would say the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_rl.batch.batch import Batch
from megatron_rl.ports import Evaluation
from megatron_rl.spec.schema import SpecError
from megatron_rl.telemetry.points import Point, flat
from megatron_rl.telemetry.sink import RunFacts

FILE = "wandb.json"


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Where the wandb run stands."""

    id: str
    step: int = 0
    """The last step shown."""
    evaluation: int = -1
    """The last evaluation shown, by its step."""


class WandbRun:
    """Logs to wandb. Offline works without a network; `wandb sync` sends it later."""

    def __init__(self, *, project: str = "megatron_rl", mode: Literal["online", "offline"] = "online") -> None:
        if importlib.util.find_spec("wandb") is None:
            raise SpecError(
                "telemetry asks for wandb, which is missing: pip install 'megatron-rl[wandb]', or switch wandb off"
            )
        self._project, self._mode = project, mode
        self._folder = Path()
        self._joined = Joined(id="")
        self._log: Callable[[dict[str, float]], None] = _too_early
        self._finish: Callable[[int], None] = _nothing

    def start(self, run: RunFacts) -> None:
        import wandb

        self._folder = run.folder
        self._joined = read_joined(run.folder)
        session: Any = wandb.init(
            project=self._project,
            mode=self._mode,
            id=self._joined.id,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.spec),
            resume="allow",
            settings={"console": "off", "quiet": True},
        )
        session.define_metric("step")
        session.define_metric("*", step_metric="step")
        self._log, self._finish = session.log, session.finish

    def wave(self, done: int, total: int, tokens: int) -> None:
        """Waves leave no mark on a curve."""

    def step(self, point: Point, batch: Batch) -> None:
        if point.step > self._joined.step:
            self._log(flat(point))
            self._remember(replace(self._joined, step=point.step))

    def evaluation(self, evaluation: Evaluation) -> None:
        if evaluation.step > self._joined.evaluation:
            self._log(flat(evaluation))
            self._remember(replace(self._joined, evaluation=evaluation.step))

    def close(self, reason: str) -> None:
        self._finish(0 if reason == "finished" else 1)

    def _remember(self, joined: Joined) -> None:
        self._joined = joined
        aside = self._folder / f".{FILE}.partial"
        aside.write_text(json.dumps(asdict(joined)))
        os.replace(aside, self._folder / FILE)


def read_joined(folder: Path) -> Joined:
    """Where the folder's wandb run stands; a new id where it has none."""
    path = folder / FILE
    return Joined(**json.loads(path.read_text())) if path.exists() else Joined(id=uuid.uuid4().hex[:12])


def _too_early(numbers: dict[str, float]) -> None:
    raise RuntimeError(f"wandb was shown {len(numbers)} numbers before the run started; call start() first")


def _nothing(code: int) -> None:
    """The run never started, so there is nothing to finish."""
