"""PSPO's correction: prompts drawn more often weigh less in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DRAW_ODDS, LOSS_WEIGHT
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class ImportanceWeight:
    """Multiplies `loss_weight` by odds^-beta over the batch's largest, where odds are those of the draw (PPS)."""

    reads = (DRAW_ODDS, LOSS_WEIGHT)
    writes = (LOSS_WEIGHT,)

    beta: Annotated[float, Ge(0)] = 0.4
    """How much of the tilt is undone; 1 makes the weighted gradient unbiased, up to the common factor."""

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        raw_B = batch.numbers(DRAW_ODDS).pow(-self.beta)
        metrics = {
            "importance_weight/raw_max": float(raw_B.max()),
            "importance_weight/mean": float((raw_B / raw_B.max()).mean()),
        }
        return batch.with_columns(loss_weight=batch.numbers(LOSS_WEIGHT) * raw_B / raw_B.max()).with_metrics(
            metrics
        ), memory
