"""SPEC-RL, after the engine: this wave's responses become the next epoch's drafts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    DRAFT_LAW_LOGPROBS,
    DRAFT_LAW_TOKENS,
    EPOCH,
    FINISH,
    GROUP,
    PROMPT_ID,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    REUSED,
    SAMPLER_LOGPROBS,
    SLOT,
    TOKENS,
    VERSION,
    Column,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.drawing import rollout_keys
from megatron_rl.laws import shown
from megatron_rl.ops.segments import positions
from megatron_rl.ports import Context

CACHED = (PROMPT_ID, SLOT, GROUP, PROMPT_TOKENS, TOKENS, SAMPLER_LOGPROBS, FINISH, EPOCH, VERSION, RESPONSE_TEXT)


@dataclass(frozen=True, kw_only=True)
class Remember:
    """Writes no column; replaces the drafts of the wave's prompts by its responses, filtered groups included.

    A draft's log-probabilities are those of the policy that stands behind the whole response now, from the side that
    `drafts.reuse` asks, and says that it does: the engine's own, or a forward pass of the actor.
    """

    slot: ClassVar[str] = "drafts"
    requires: ClassVar = {"drafts.reuse": "nothing else reads the drafts, and it opens the memory they are kept in"}
    reads = (*CACHED, REUSED, DRAFT_LAW_TOKENS, DRAFT_LAW_LOGPROBS)
    writes = ()
    uses: ClassVar[tuple[str, ...]] = ("engine",)

    max_age_epochs: int = 2
    """Drafts that were not renewed for longer are forgotten."""

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        if not isinstance(memory, Mapping) or not isinstance(memory["waves"], int):
            raise TypeError("drafts.remember needs drafts.reuse before it in `collect`, which opens the shared memory")
        keys = rollout_keys(batch)
        wave = batch.with_columns(group=[group for _, _, group in keys])
        if memory["side"] == "actor":
            wave = wave.with_columns(sampler_logprobs=context.actor.score(batch))
        fresh = wave.select(CACHED)
        if isinstance(memory["laws"], int):
            fresh = fresh.with_columns(_laws(batch, memory["laws"], context))
        kept = self._still_good(memory["cache"], set(keys), int(batch.numbers(EPOCH).max()))
        cache = Batch.concat([*kept, fresh])
        told = batch.without(DRAFT_LAW_TOKENS, DRAFT_LAW_LOGPROBS).with_metrics(_metrics(batch, memory["cache"]))
        return told, {**memory, "cache": cache, "waves": memory["waves"] + 1}

    def _still_good(self, cache: Memory, renewed: set[tuple[str, int, int]], epoch: int) -> list[Batch]:
        if not isinstance(cache, Batch):
            return []
        identity = zip(
            cache.strings(PROMPT_ID),
            cache.numbers(SLOT).tolist(),
            cache.numbers(GROUP).tolist(),
            cache.numbers(EPOCH).tolist(),
            strict=True,
        )
        return [
            cache.where(
                torch.tensor(
                    [
                        (prompt, slot, group) not in renewed and epoch - drawn_in <= self.max_age_epochs
                        for prompt, slot, group, drawn_in in identity
                    ],
                    dtype=torch.bool,
                )
            )
        ]


def _laws(batch: Batch, top: int, context: Context) -> dict[Column, Ragged]:
    """The law of every response token: of those that were kept as `drafts.reuse` found it, of the others asked for."""
    prompts, tokens = batch.ragged(PROMPT_TOKENS), batch.ragged(TOKENS)
    kept_B = batch.numbers(REUSED)
    written_T = positions(tokens.offsets) >= kept_B[tokens.row_T]
    rest = Ragged.from_lengths(tokens.values[written_T], tokens.length_B - kept_B)
    asked = Batch.of({PROMPT_TOKENS: prompts.append(tokens.head(kept_B)), TOKENS: rest})
    laws = shown(context.engine).laws(asked, top)
    return {
        DRAFT_LAW_TOKENS: batch.ragged(DRAFT_LAW_TOKENS).append(laws.tokens),
        DRAFT_LAW_LOGPROBS: batch.ragged(DRAFT_LAW_LOGPROBS).append(laws.logprobs),
    }


def _metrics(batch: Batch, cache: Memory) -> dict[str, float]:
    """How much the epochs overlap, token by token, and how many different responses a group has."""
    groups = batch.group_rows()
    said = [tuple(row.tolist()) for row in batch.ragged(TOKENS).rows()]
    distinct = sum(len({said[row] for row in rows.tolist()}) for rows in groups)
    metrics = {"drafts/distinct_share": distinct / max(len(batch), 1)}
    if isinstance(cache, Batch):
        keys = zip(cache.strings(PROMPT_ID), cache.numbers(SLOT).tolist(), cache.numbers(GROUP).tolist(), strict=True)
        before = dict(zip(keys, (row.tolist() for row in cache.ragged(TOKENS).rows()), strict=True))
        pairs = [(before[key], now) for key, now in zip(rollout_keys(batch), said, strict=True) if key in before]
        same = sum(a == b for old, new in pairs for a, b in zip(old, new, strict=False))
        metrics["drafts/overlap"] = same / max(sum(max(len(old), len(new)) for old, new in pairs), 1)
    return metrics
