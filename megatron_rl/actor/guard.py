"""Numbers that are not finite: found before or after they were computed with, never trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, REWARD, Column


class NotFinite(RuntimeError):
    """Optimizer steps were skipped too often in a row; `offending` holds the rows of the last ones."""

    def __init__(self, steps: int, reason: str, offending: Batch) -> None:
        super().__init__(steps, reason, offending)
        self.steps, self.reason, self.offending = steps, reason, offending

    def __str__(self) -> str:
        return (
            f"{self.steps} optimizer steps in a row were skipped, the last because of {self.reason} in "
            f"{len(self.offending)} rollouts; look at the rows written out, or raise max_skipped to go on."
        )


def tainted_rows(batch: Batch, reads: Iterable[Column]) -> Tensor:
    """Rows with a NaN or an infinity in a column the loss reads, or in what such a column was made from."""
    tainted_B = torch.zeros(len(batch), dtype=torch.bool)
    for column in {column.name: column for column in (*reads, REWARD, ADVANTAGE)}.values():
        if column not in batch:
            continue
        if column.is_ragged:
            ragged = batch.ragged(column)
            tainted_B[ragged.row_T[~torch.isfinite(ragged.values)]] = True
        elif column.type in ("double", "float"):
            tainted_B |= ~torch.isfinite(batch.numbers(column))
    return tainted_B
