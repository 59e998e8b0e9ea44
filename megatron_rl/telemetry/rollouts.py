"""One Parquet of rollouts a step, and the text of the tokens in them.

rollouts/step_000012.parquet   the batch the step learnt from, every column
rollouts/pieces.json           text of each token id that occurs in any of them
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import TOKENS
from megatron_rl.ports import Evaluation
from megatron_rl.telemetry.points import Point
from megatron_rl.telemetry.sink import RunFacts, writing

FOLDER, PIECES = "rollouts", "pieces.json"
_NAME = re.compile(r"step_(\d+)\.parquet")


class RolloutFiles:
    """Writes `folder/rollouts/`, whole files or none.

    `every` thins: only each n-th step is written. `keep` prunes: only the newest files stay; 0 keeps all.
    """

    def __init__(self, *, every: int = 1, keep: int = 0) -> None:
        if every < 1 or keep < 0:
            raise ValueError(f"rollout files need every >= 1 and keep >= 0, got every={every}, keep={keep}")
        self._every, self._keep = every, keep
        self._run: RunFacts | None = None
        self._pieces: dict[int, str] = {}

    def start(self, run: RunFacts) -> None:
        """Removes the files of steps that will be made again."""
        self._run = run
        folder = run.folder / FOLDER
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for step, path in rollout_files(run.folder).items():
                if step > run.step:
                    path.unlink()
            self._pieces = read_pieces(folder)

    def wave(self, done: int, total: int, tokens: int) -> None:
        """Waves leave no file."""

    def step(self, point: Point, batch: Batch) -> None:
        if self._run is None:
            raise RuntimeError("rollouts were written before the run started; call start() first")
        if point.step % self._every:
            return
        path = self._run.folder / FOLDER / f"step_{point.step:06d}.parquet"
        aside = path.with_name(f".{path.name}.partial")
        with writing(path):
            batch.write_parquet(aside)
            os.replace(aside, path)
        with writing(path.with_name(PIECES)):
            self._learn_pieces(batch, path.parent, self._run)
        with writing(path.parent):
            for old in list(rollout_files(self._run.folder).values())[: -self._keep] if self._keep else ():
                old.unlink()

    def evaluation(self, evaluation: Evaluation) -> None:
        """An evaluation's rollouts are not kept."""

    def close(self, reason: str) -> None:
        """Every file is whole already."""

    def _learn_pieces(self, batch: Batch, folder: Path, run: RunFacts) -> None:
        seen = set(batch.ragged(TOKENS).values.tolist()) if TOKENS in batch else set()
        fresh = seen - self._pieces.keys()
        if fresh:
            self._pieces |= {token: run.piece(token) for token in sorted(fresh)}
            aside = folder / f".{PIECES}.partial"
            aside.write_text(json.dumps(self._pieces), encoding="utf-8")
            os.replace(aside, folder / PIECES)


def rollout_files(folder: Path) -> dict[int, Path]:
    """The kept rollouts of a run folder, by step, in order."""
    found = {
        int(match[1]): path
        for path in (folder / FOLDER).glob("step_*.parquet")
        if (match := _NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def read_pieces(folder: Path) -> dict[int, str]:
    """Token texts kept beside rollout files; empty where none are."""
    path = folder / PIECES
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {int(token): str(text) for token, text in dict(said).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no mapping of token ids to texts ({error}); remove it to go on") from None
