"""JSPO's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, PROMPT_ID, REWARD
from megatron_rl.ops.baselines import shrinkage
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class ShrinkageBaseline:
    """Writes `baseline`: each prompt's leave-one-out mean, shrunk towards the other prompts of the batch (JSPO).

    Draws of the same prompt count as one group, since a prompt must not be among its own others.
    """

    reads = (REWARD, GROUP, PROMPT_ID)
    writes = (BASELINE,)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        reward_B = batch.numbers(REWARD)
        shrunk = shrinkage(reward_B, batch.index(PROMPT_ID))
        metrics = {
            "shrinkage/weight_mean": float(shrunk.weight_G.mean()),
            "shrinkage/weight_min": float(shrunk.weight_G.min()),
            "shrinkage/weight_max": float(shrunk.weight_G.max()),
            "shrinkage/noise_mean": float(shrunk.noise_G.mean()),
            "shrinkage/spread_mean": float(shrunk.spread_G.mean()),
        }
        return batch.with_columns(baseline=shrunk.baseline_B).with_metrics(metrics), memory
