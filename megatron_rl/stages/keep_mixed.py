"""DAPO's dynamic sampling: groups that teach nothing are not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, GROUP, KEPT
from megatron_rl.ops.filters import varied
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class KeepMixed:
    """Writes `kept`: 0 for the groups whose rollouts are all right or all wrong. A group of one stays.

    The buffer then waits for further waves until a batch is full. `correct` decides, since shaping mixes every group.
    """

    reads = (CORRECT, GROUP, KEPT)
    writes = (KEPT,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        group_B = batch.group_index()
        mixed_G = varied(batch.numbers(CORRECT).double(), group_B)
        kept_B = batch.numbers(KEPT).bool() & mixed_G[group_B]
        share = {"keep_mixed/kept_share": float(mixed_G.double().mean())}
        return batch.with_columns(kept=kept_B.to(torch.uint8)).with_metrics(share), memory
