"""A resident that needs no model: what it does is told by the objective it is given."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.beside import beside
from megatron_rl.cluster.rank import Post
from megatron_rl.ports import NotFinite, Policy, Update
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.transport import SyncReport


@dataclass(frozen=True)
class Order:
    """What to do in place of an update, and on which rank; the others do nothing, or wait."""

    what: str
    rank: int = 0
    others_wait_s: float = 0.0


class Echo:
    def __init__(self, post: Post, store: object) -> None:
        self.post, self.store, self.writing = post, store, ""

    def update(self, batch: Batch, objective: Order) -> Update:
        if self.post.rank != objective.rank:
            time.sleep(objective.others_wait_s)
            return Update(metrics={}, steps=0)
        match objective.what:
            case "raise":
                raise ArithmeticError("the sky is green")
            case "give up":
                raise NotFinite(3, "a loss that is not finite", batch.take(torch.tensor([1])))
            case "sleep":
                self.stand_here()
            case "die":
                os.abort()
        own = float(pyarrow.total_allocated_bytes())
        metrics = {"rank": float(self.post.rank), "bytes": float(batch.table.nbytes), "own": own}
        return Update(metrics=metrics, steps=1, offending=batch.take(torch.tensor([0])))

    def stand_here(self) -> None:
        time.sleep(120)

    def score(self, batch: Batch, policy: Policy) -> Ragged:
        tokens = batch.ragged(TOKENS)
        return Ragged(-tokens.values.float(), tokens.offsets)

    def value(self, batch: Batch) -> Ragged:
        tokens = batch.ragged(TOKENS)
        return Ragged(tokens.values.float() / 2, tokens.offsets)

    def update_critic(self, batch: Batch) -> Update:
        return Update(metrics={"rows": float(len(batch))}, steps=1)

    def save(self, folder: Path) -> Future[None]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.post.rank}").write_text(str(folder.is_absolute()))
        return beside(partial(self._write, folder), "save")

    def _write(self, folder: Path) -> None:
        """What happens beside, told by the folder's name."""
        if self.post.rank == 1 and folder.name in SAVES:
            self.writing = str(folder)
            SAVES[folder.name](self)
        elif folder.name in ("raise", "sleep"):
            time.sleep(120)

    def load(self, folder: Path) -> None:
        (folder / f"{self.post.rank}").read_text()

    def publish(self, version: int, route: object) -> SyncReport:
        if route == "broken":
            raise TransferError("the sync was given up")
        return SyncReport(version=version, bytes=0, bound=0, local_bytes=0, messages=self.post.rank, seconds=0.0)

    def close(self) -> None:
        print("closed", flush=True)


def _full(_: Echo) -> None:
    raise OSError(28, "No space left on device")


def _raise(_: Echo) -> None:
    raise ArithmeticError("the sea is green")


SAVES = {"sleep": Echo.stand_here, "full": _full, "raise": _raise, "die": lambda _: os.abort()}
"""What the second rank does in place of writing."""
