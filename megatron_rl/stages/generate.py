"""Rollouts from the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge

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
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.failures import lived
from megatron_rl.ports import Context


class Trip(NamedTuple):
    """What a trip to the engine leaves: groups that are written to their ends, and those that are not, if any."""

    whole: Batch
    begun: Batch | None


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Writes the response of every request.

    With `stretch` a response that is not done waits in memory with its group, and goes on with the next trip to the
    engine, by the weights of then: a wave is not held up by its longest responses. Whole groups are passed on.
    """

    reads = (PROMPT_TOKENS, SEED)
    writes = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION, RESPONSE_TEXT)
    uses: ClassVar[tuple[str, ...]] = ("engine",)
    may_read: ClassVar = (PREFIX, PREFIX_LOGPROBS, PREFIX_FINISH, BUDGET, RESPONSE_TEXT)

    stretch: Annotated[int, Ge(1)] | None = None
    """Most tokens that a trip to the engine adds to a response; null writes all of it in one."""

    @property
    def conflicts(self) -> Mapping[str, str]:
        if self.stretch is None:
            return {}
        return {
            "screening": "a prompt's screening and its continuation each are expected back whole from one trip, and "
            "generate.stretch may bring them later",
            "drafts.reuse": "generate.stretch makes prefixes of its own, of what it has begun",
        }

    @property
    def mixes_versions(self) -> bool:
        """Whether tokens of one response may be of several versions."""
        return self.stretch is not None

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        if self.stretch is None:
            rollouts = _generate_missing(batch, context)
            return rollouts.with_metrics(_metrics(rollouts)), memory
        trip = _further(_resumed(batch, memory), self.stretch, context)
        told = _metrics(trip.whole) | _spans(trip) if len(trip.whole) else {}
        return trip.whole.with_metrics(told), None if trip.begun is None else {"begun": trip.begun}


def _metrics(rollouts: Batch) -> dict[str, float]:
    """Of those that came to an end, and how many of all did not."""
    living = rollouts.where(lived(rollouts))
    length_B = living.ragged(TOKENS).length_B.double()
    stopped = living.strings(FINISH).count("stop")
    failed = len(rollouts) - len(living)
    counts = {
        "rollout/tokens": float(length_B.sum()),
        "rollout/requested": float(len(rollouts)),
        "rollout/failed": float(failed),
        "rollout/failed_share": failed / len(rollouts),
    }
    if not len(living):
        return counts
    return counts | {
        "rollout/length_mean": float(length_B.mean()),
        "rollout/length_max": float(length_B.max()),
        "rollout/truncated_share": 1 - stopped / len(living),
    }


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


def _resumed(batch: Batch, memory: Memory) -> Batch:
    """The wave's requests, of which nothing is written yet, behind what earlier waves have begun."""
    nothing = Ragged.from_lengths(torch.zeros(0), torch.zeros(len(batch), dtype=torch.int64))
    count = len(batch)
    fresh = batch.with_columns(
        tokens=nothing,
        sampler_logprobs=nothing,
        loss_mask=nothing,
        token_versions=nothing,
        finish=[""] * count,
        status=["ok"] * count,
        error=[""] * count,
        version=[-1] * count,
        response_text=[""] * count,
    )
    begun = memory["begun"] if isinstance(memory, Mapping) else None
    return Batch.concat([begun, fresh]) if isinstance(begun, Batch) else fresh


def _further(rollouts: Batch, stretch: int, context: Context) -> Trip:
    """One trip to the engine with every rollout that is not done."""
    open_B = torch.tensor([finish == "" for finish in rollouts.strings(FINISH)])
    written = _written(rollouts.where(open_B), stretch, context)
    both = Batch.concat([rollouts.where(~open_B), written]).take(
        torch.argsort(torch.cat([(~open_B).nonzero().flatten(), open_B.nonzero().flatten()]))
    )
    group_B = both.group_index()
    is_open_B = torch.tensor([finish == "" for finish in both.strings(FINISH)])
    waits_B = torch.bincount(group_B, weights=is_open_B.double())[group_B] > 0
    return Trip(both.where(~waits_B), both.where(waits_B) if bool(waits_B.any()) else None)


def _written(begun: Batch, stretch: int, context: Context) -> Batch:
    """These rollouts, each longer by a stretch, or done; one that is not has no finish yet."""
    before, versions, most = begun.ragged(TOKENS), begun.ragged(TOKEN_VERSIONS), context.engine.max_tokens
    budget_B = (before.length_B + stretch).clamp(max=most)
    given = begun.ragged(SAMPLER_LOGPROBS)
    asked = begun.without(*Generate.writes).with_columns(prefix=before, prefix_logprobs=given, budget=budget_B)
    after = rollouts_of(context.engine, asked).without(PREFIX, PREFIX_LOGPROBS, BUDGET)
    length_B, lived = after.ragged(TOKENS).length_B, after.strings(STATUS)
    finish = [
        "" if how == "length" and status == "ok" and length == budget < most else how
        for how, status, length, budget in zip(
            after.strings(FINISH), lived, length_B.tolist(), budget_B.tolist(), strict=True
        )
    ]
    kept = versions.head(length_B)
    added = after.ragged(TOKEN_VERSIONS).behind(kept.length_B)
    return after.with_columns(finish=finish, token_versions=kept.append(added)).with_metrics(begun.metrics)


def _spans(trip: Trip) -> dict[str, float]:
    """How many rollouts wait to go on, and how far apart the versions of one response are."""
    versions = trip.whole.ragged(TOKEN_VERSIONS)
    span_B = torch.tensor([int(row[-1] - row[0]) if len(row) else 0 for row in versions.rows()])
    return {
        "stretch/begun": float(len(trip.begun)) if trip.begun is not None else 0.0,
        "stretch/resumed_share": float((span_B > 0).double().mean()),
        "stretch/versions_max": float(span_B.max()),
    }
