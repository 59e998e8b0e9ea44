"""Rollouts from the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ERROR,
    FINISH,
    LOSS_MASK,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    SEED,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
    VERSION,
)
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Writes the response of every request."""

    reads = (PROMPT_TOKENS, SEED)
    writes = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION, RESPONSE_TEXT)
    uses: ClassVar[tuple[str, ...]] = ("engine",)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        rollouts = context.engine.generate(batch)
        length_B = rollouts.ragged(TOKENS).length_B.double()
        stopped = [finish == "stop" for finish in rollouts.strings(FINISH)]
        failed = [status == "failed" for status in rollouts.strings(STATUS)]
        metrics = {
            "rollout/length_mean": float(length_B.mean()),
            "rollout/length_max": float(length_B.max()),
            "rollout/tokens": float(length_B.sum()),
            "rollout/truncated_share": 1 - sum(stopped) / len(stopped),
            "rollout/failed_share": sum(failed) / len(failed),
        }
        return rollouts.with_metrics(metrics), memory
