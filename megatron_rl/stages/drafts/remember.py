"""SPEC-RL, after the engine: this wave's responses become the next epoch's drafts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    EPOCH,
    FINISH,
    GROUP,
    PROMPT_ID,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    SLOT,
    STATUS,
    TOKENS,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.drawing import rollout_keys
from megatron_rl.ports import Context

CACHED = (PROMPT_ID, SLOT, GROUP, PROMPT_TOKENS, TOKENS, SAMPLER_LOGPROBS, FINISH, EPOCH, RESPONSE_TEXT)


@dataclass(frozen=True, kw_only=True)
class Remember:
    """Writes no column; replaces the drafts of the wave's prompts by its responses, filtered groups included.

    A draft's log-probabilities are those of the policy that stands behind the whole response now, from the side that
    `drafts.reuse` asks: the engine's own, or a forward pass of the actor.
    """

    slot: ClassVar[str] = "drafts"
    requires: ClassVar = {"drafts.reuse": "nothing else reads the drafts, and it opens the memory they are kept in"}
    reads = (*CACHED, STATUS)
    writes = ()
    uses: ClassVar[tuple[str, ...]] = ("actor",)

    max_age_epochs: int = 2
    """Drafts that were not renewed for longer are forgotten."""

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        if not isinstance(memory, Mapping) or not isinstance(memory["waves"], int):
            raise TypeError("drafts.remember needs drafts.reuse before it in `collect`, which opens the shared memory")
        keys = rollout_keys(batch)
        wave = batch.with_columns(group=[group for _, _, group in keys])
        if memory["side"] == "actor":
            wave = wave.with_columns(sampler_logprobs=context.actor.score(batch))
        lived_B = torch.tensor([status == "ok" for status in batch.strings(STATUS)])
        fresh = wave.where(lived_B).select(CACHED)
        kept = self._still_good(memory["cache"], set(keys), int(batch.numbers(EPOCH).max()))
        cache = Batch.concat([*kept, fresh])
        return batch, {**memory, "cache": cache, "waves": memory["waves"] + 1}

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
                    ]
                )
            )
        ]
