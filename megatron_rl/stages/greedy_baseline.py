"""ReMax's baseline: what the policy gets when it takes no chances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.accounting import rollouts_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import BASELINE, KEPT, REWARD, TOKENS
from megatron_rl.failures import lived
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class GreedyBaseline:
    """Writes `baseline`: the reward of one greedy rollout of the prompt, which is not trained on.

    Stands in `collect`, so that the weights that write the greedy rollouts are those that wrote the others. A group
    whose greedy rollout failed has nothing to be measured by: its `kept` is 0.
    """

    reads = (*DRAWN, KEPT)
    writes = (BASELINE, KEPT)
    uses: ClassVar[tuple[str, ...]] = ("engine", "judge")

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        first_G = torch.tensor([int(rows[0]) for rows in batch.group_rows()])
        asked = batch.take(first_G).select(DRAWN).with_columns(phase=["greedy"] * len(first_G))
        greedy = context.judge.judge(rollouts_of(context.engine, asked, GREEDY))
        lived_G, reward_G, group_B = lived(greedy), greedy.numbers(REWARD), batch.group_index()
        metrics = {
            "greedy_baseline/tokens": float(greedy.ragged(TOKENS).length_B.sum()),
            "greedy_baseline/failed": float((~lived_G).sum()),
        }
        if bool(lived_G.any()):
            metrics["greedy_baseline/mean"] = float(reward_G[lived_G].mean())
        kept_B = batch.numbers(KEPT).bool() & lived_G[group_B]
        columns = batch.with_columns(baseline=reward_G[group_B], kept=kept_B.to(torch.uint8))
        return columns.with_metrics(metrics), memory
