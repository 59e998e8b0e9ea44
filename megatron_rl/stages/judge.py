"""Rewards from the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ANSWER, CORRECT, EXTRACTED, RESPONSE_TEXT, REWARD, STATUS, VERDICT
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Writes what the reward says of every response."""

    reads = (RESPONSE_TEXT, ANSWER, STATUS)
    writes = (REWARD, CORRECT, VERDICT, EXTRACTED)
    uses: ClassVar[tuple[str, ...]] = ("judge",)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        judged = context.judge.judge(batch)
        metrics = {
            "rollout/scored": float(judged.strings(STATUS).count("ok")),
            "reward/mean": float(judged.numbers(REWARD).mean()),
            "reward/correct": float(judged.numbers(CORRECT).double().mean()),
        }
        return judged.with_metrics(metrics), memory
