"""BLOO's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, PROMPT_ID, REWARD
from megatron_rl.ops.baselines import bloo
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class OthersBaseline:
    """Writes `baseline`: the mean over the other prompts of the batch of their mean reward; zero for a lone prompt."""

    reads = (REWARD, PROMPT_ID)
    writes = (BASELINE,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        return batch.with_columns(baseline=bloo(batch.numbers(REWARD), batch.index(PROMPT_ID))), memory
