"""Rollouts from the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.accounting import rollouts_of
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    BUDGET,
    ERROR,
    FINISH,
    LOSS_MASK,
    PREFIX,
    PREFIX_FINISH,
    PREFIX_LOGPROBS,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    SEED,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
    VERSION,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import Context


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Writes the response of every request."""

    reads = (PROMPT_TOKENS, SEED)
    writes = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION, RESPONSE_TEXT)
    uses: ClassVar[tuple[str, ...]] = ("engine",)
    may_read: ClassVar = (PREFIX, PREFIX_LOGPROBS, PREFIX_FINISH, BUDGET, RESPONSE_TEXT)

    def __call__(self, batch: Batch, memory: None, context: Context) -> tuple[Batch, None]:
        rollouts = _generate_missing(batch, context)
        length_B = rollouts.ragged(TOKENS).length_B.double()
        stopped = [finish == "stop" for finish in rollouts.strings(FINISH)]
        failed = [status == "failed" for status in rollouts.strings(STATUS)]
        metrics = {
            "rollout/length_mean": float(length_B.mean()),
            "rollout/length_max": float(length_B.max()),
            "rollout/tokens": float(length_B.sum()),
            "rollout/truncated_share": 1 - sum(stopped) / len(stopped),
            "rollout/requested": float(len(batch)),
            "rollout/failed": float(sum(failed)),
            "rollout/failed_share": sum(failed) / len(failed),
        }
        return rollouts.with_metrics(metrics), memory


def _generate_missing(batch: Batch, context: Context) -> Batch:
    """Asks the engine for the rows whose prefix is not already a whole response."""
    if PREFIX_FINISH not in batch:
        return rollouts_of(context.engine, batch)
    whole_B = torch.tensor([finish != "" for finish in batch.strings(PREFIX_FINISH)])
    parts = [_as_it_is(batch.where(whole_B), context.version)] if bool(whole_B.any()) else []
    if not bool(whole_B.all()):
        parts.append(rollouts_of(context.engine, batch.where(~whole_B).without(PREFIX_FINISH)))
    order_B = torch.cat([whole_B.nonzero().flatten(), (~whole_B).nonzero().flatten()])
    return Batch.concat([_without_prefix(part) for part in parts]).take(torch.argsort(order_B))


def _as_it_is(batch: Batch, version: int) -> Batch:
    prefix = batch.ragged(PREFIX)
    count = len(batch)
    return batch.with_columns(
        tokens=prefix,
        sampler_logprobs=batch.ragged(PREFIX_LOGPROBS),
        loss_mask=Ragged(torch.ones_like(prefix.values), prefix.offsets),
        token_versions=Ragged(torch.full_like(prefix.values, version), prefix.offsets),
        finish=batch.strings(PREFIX_FINISH),
        status=["ok"] * count,
        error=[""] * count,
        version=[version] * count,
    )


def _without_prefix(batch: Batch) -> Batch:
    return batch.without(PREFIX, PREFIX_LOGPROBS, PREFIX_FINISH, BUDGET)
