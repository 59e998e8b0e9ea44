"""JSPO's baseline."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, GROUP, PROMPT_ID, REWARD
from megatron_rl.ops.baselines import rloo, shrinkage
from megatron_rl.ops.segments import group_moments
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
        plain_B = reward_B - rloo(reward_B, batch.index(PROMPT_ID))
        plain_square = float(plain_B.square().mean())
        _, _, variance_G = group_moments(reward_B, batch.index(PROMPT_ID))
        metrics = {
            # What shrinking makes of the size of advantages: RLOO's on the same rollouts is 1.
            "shrinkage/square_ratio": float((reward_B - shrunk.baseline_B).square().mean()) / plain_square
            if plain_square
            else 1.0,
            "shrinkage/constant_share": float((variance_G == 0).double().mean()),
        }
        of_prompts = {"weight": shrunk.weight_G, "noise": shrunk.noise_G, "spread": shrunk.spread_G}
        for name, value_G in of_prompts.items():
            ends = {"mean": value_G.mean(), "min": value_G.min(), "max": value_G.max()}
            metrics |= {f"shrinkage/{name}_{end}": float(value) for end, value in ends.items()}
        return batch.with_columns(baseline=shrunk.baseline_B).with_metrics(metrics), memory
