"""ReMax's baseline: what the policy gets when it takes no chances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.accounting import rollouts_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, REWARD, TOKENS
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class GreedyBaseline:
    """Writes `baseline`: the reward of one greedy rollout of the prompt, which is not trained on.

    Stands in `collect`, so that the weights that write the greedy rollouts are those that wrote the others.
    """

    reads = DRAWN
    writes = (BASELINE,)
    uses: ClassVar[tuple[str, ...]] = ("engine", "judge")

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        first_G = torch.tensor([int(rows[0]) for rows in batch.group_rows()])
        asked = batch.take(first_G).select(DRAWN).with_columns(phase=["greedy"] * len(first_G))
        greedy = context.judge.judge(rollouts_of(context.engine, asked, GREEDY))
        reward_G = greedy.numbers(REWARD)
        metrics = {
            "greedy_baseline/mean": float(reward_G.mean()),
            "greedy_baseline/tokens": float(greedy.ragged(TOKENS).length_B.sum()),
        }
        return batch.with_columns(baseline=reward_G[batch.group_index()]).with_metrics(metrics), memory
