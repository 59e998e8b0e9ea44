"""SPEED-RL: a few rollouts of each fresh prompt, many more of those that turned out mixed, in one engine call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ANSWER,
    EPOCH,
    EXTRA,
    GROUP,
    PROMPT_ID,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    SOURCE,
    VERSION,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.drawing import requests, rollout_seeds, stream
from megatron_rl.ops.segments import group_count
from megatron_rl.pipeline import DRAWN
from megatron_rl.ports import Context

PROMPT = (PROMPT_ID, GROUP, SOURCE, ANSWER, EXTRA, PROMPT_TEXT, PROMPT_TOKENS, EPOCH)


@dataclass(frozen=True, kw_only=True)
class Screening:
    """Draws `screened` fresh prompts with `screen` rollouts each, and `more` rollouts of every accepted prompt.

    Needs the stage `screen` in `collect`, which accepts, and completes the groups. Memory, shared with it:
    `{"drawn": prompts drawn so far, "screened": those of which a rollout came back, "pending": accepted screening
    rollouts, "expired": prompts that waited too long}`.
    """

    slot: ClassVar[str] = "screening"
    requires: ClassVar = {"screen": "without that stage nothing is ever accepted, and groups are trained on in pieces"}
    conflicts: ClassVar = {
        "keep_mixed": "screening already keeps mixed groups only, and a filter before it drops what it would continue",
        "optimal_value": "one rollout a prompt leaves nothing to screen; the rewards of the value run say which "
        "prompts are hopeless, and data.solvable leaves them out",
    }
    writes = DRAWN

    prompts: Annotated[int, Ge(1)] = 16
    """Prompts one update learns from."""
    screened: Annotated[int, Ge(1)] = 64
    """Fresh prompts a trip to the engine."""
    screen: int = 4
    """Rollouts that decide about a prompt; at least 2, since one rollout is never mixed."""
    more: int = 20
    """Rollouts of an accepted prompt after that."""
    max_age: Annotated[int, Ge(0)] = 8
    """Accepted prompts whose screening lies more than this many updates back are dropped before they are continued, and
    whole groups whose continuation does before they are learnt from."""
    shuffle: bool = True
    """Off keeps the order of the file."""

    def __post_init__(self) -> None:
        if self.screen < 2 or self.more < 1:
            raise ValueError(
                f"screening: screen is {self.screen} and more is {self.more}; one screening rollout is never mixed "
                "and no continuation leaves nothing to save: use screen of at least 2 and more of at least 1"
            )

    def draw(self, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        state = screening_state(memory)
        drawn, pending = state["drawn"], state["pending"]
        assert isinstance(drawn, int), "drawn counts prompts"
        size = len(context.prompts.ids)
        picks = list(itertools.islice(stream(context, size, drawn, self.shuffle), self.screened))
        wave = requests(context, picks, self.screen, first_group=drawn, phase="screen")
        told = {
            "screening/failed": float(drawn - _whole(state["screened"])),
            "screening/drawn": float(drawn + len(picks)),
        }
        state |= {"drawn": drawn + len(picks)}
        if isinstance(pending, Batch):
            young = self._young_enough(pending, context.version)
            expired = group_count(pending.group_index()) - group_count(young.group_index())
            state |= {"pending": young if len(young) else None, "expired": _whole(state["expired"]) + expired}
            wave = Batch.concat([wave, self._continuations(young, context)]) if len(young) else wave
        return wave.with_metrics({**told, "screening/expired": float(_whole(state["expired"]))}), state

    def observe(self, batch: Batch, memory: Memory, context: Context) -> Memory:
        return memory

    def _young_enough(self, pending: Batch, version: int) -> Batch:
        return pending.where(version - pending.numbers(VERSION) <= self.max_age)

    def _continuations(self, pending: Batch, context: Context) -> Batch:
        firsts = torch.tensor([int(rows[0]) for rows in pending.group_rows()])
        prompts = pending.take(firsts.repeat_interleave(self.more)).select(PROMPT)
        slots = np.tile(np.arange(self.screen, self.screen + self.more), len(firsts))
        seeds = rollout_seeds(context, prompts.numbers(GROUP).numpy(), slots)
        return prompts.with_columns(slot=slots, phase=["continue"] * len(slots), seed=seeds)


def screening_state(memory: Memory) -> dict[str, Memory]:
    """A memory that does not say how many prompts came back is of a time when all were taken to."""
    known = memory if isinstance(memory, Mapping) else {"drawn": 0, "pending": None, "expired": 0}
    return {"screened": known["drawn"], **known}


def _whole(value: Memory) -> int:
    if not isinstance(value, int):
        raise TypeError(f"screening's memory counts prompts in whole numbers, got {value!r}")
    return value
