"""Collecting ahead with an engine that takes weights while it writes: nobody waits before they change.

    step s, 1 ahead     driver   learn from batch s                 | publish s + 1 | learn from batch s + 1
                        beside   … write batch s + 1 with version s |               | … go on with version s + 1

With k ahead, batch s is begun with version max(0, s - k) at the oldest and ends with version s at the newest. Where in
its tokens a version begins is a matter of speed, so no run repeats itself to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from megatron_rl.ahead import Ahead, Mortal
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import TOKEN_VERSIONS
from megatron_rl.loop import Run
from megatron_rl.ports import Context


class InFlight(Ahead):
    """A `Feed` over an engine that takes weights while it writes: nobody waits before they change."""

    def __init__(self, steps: int, engine: Mortal | None = None) -> None:
        super().__init__(steps, engine)
        self._spans: Mapping[str, float] = {}

    @property
    def metrics(self) -> Mapping[str, float]:
        return {**super().metrics, **self._spans}

    def next_batch(self, run: Run, context: Context) -> Batch:
        batch = super().next_batch(run, context)
        self._spans = _spans(batch, context.version)
        return batch

    def give_way(self, run: Run) -> None:
        """The engine has its own way of making room, in the middle of what it writes."""


def _spans(batch: Batch, version: int) -> dict[str, float]:
    """How many rollouts are of several versions, how far apart at most, and how far the oldest token lags."""
    rows = [row for row in batch.ragged(TOKEN_VERSIONS).rows() if len(row)]
    if not rows:
        return {}
    span_B = torch.tensor([int(row.max() - row.min()) for row in rows])
    return {
        "in_flight/spanning_share": float((span_B > 0).double().mean()),
        "in_flight/versions_max": float(span_B.max()),
        "in_flight/lag_max": float(version - min(int(row.min()) for row in rows)),
    }
