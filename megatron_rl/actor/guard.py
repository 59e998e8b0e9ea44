"""Numbers that are not finite: found before or after they were computed with, never trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, LOSS_MASK, REWARD, Column


def tainted_rows(batch: Batch, reads: Iterable[Column]) -> Tensor:
    """Rows with a NaN or an infinity in a column the loss reads, or in what such a column was made from.

    Tokens that take no part in the loss may hold anything.
    """
    tainted_B = torch.zeros(len(batch), dtype=torch.bool)
    live_T = batch.ragged(LOSS_MASK).values.bool() if LOSS_MASK in batch else torch.tensor(True)
    for column in {column.name: column for column in (*reads, REWARD, ADVANTAGE)}.values():
        if column not in batch:
            continue
        if column.is_ragged:
            ragged = batch.ragged(column)
            tainted_B[ragged.row_T[live_T & ~torch.isfinite(ragged.values)]] = True
        else:
            tainted_B |= ~torch.isfinite(batch.numbers(column))
    return tainted_B
