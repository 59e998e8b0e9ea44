"""Chains of stages, the memory they keep, and the proof at load that every column read has been written."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ANSWER,
    EPOCH,
    EXTRA,
    GROUP,
    OLD_LOGPROBS,
    PHASE,
    PROMPT_ID,
    PROMPT_TEXT,
    PROMPT_TOKENS,
    SEED,
    SLOT,
    SOURCE,
    Column,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.failures import FAILED, leave
from megatron_rl.ports import Context, Objective, Stage

Memories = Mapping[str, Memory]
"""What a run remembers, by slot. Two steps that share memory name the same slot."""

Watch = Callable[[str], AbstractContextManager[None]]
"""Entered around each stage, under its name; the chain itself has no clock."""

DRAWN = (PROMPT_ID, GROUP, SLOT, SOURCE, ANSWER, EXTRA, PROMPT_TEXT, PROMPT_TOKENS, EPOCH, PHASE, SEED)
"""The columns every sampler draws; one may add its own to its `writes`."""

PROVIDED = (OLD_LOGPROBS,)
"""What the actor itself supplies to an objective when no stage has written it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with the name it has in the YAML and the slot of its memory."""

    name: str
    stage: Stage
    slot: str


@dataclass(frozen=True)
class Chain:
    """Stages one after another; itself batch and memories in, batch and memories out.

    Rollouts that failed leave before any stage can see them, into the memory of `failures`. A stage may keep all rows
    back; those behind it then have nothing to do.
    """

    steps: tuple[Step, ...]

    def __call__(
        self, batch: Batch, memories: Memories, context: Context, watch: Watch = lambda _: nullcontext()
    ) -> tuple[Batch, dict[str, Memory]]:
        kept = dict(memories)
        batch, kept[FAILED] = leave(batch, kept.get(FAILED))
        for step in self.steps:
            if not len(batch):
                break
            with watch(step.name):
                batch, kept[step.slot] = step.stage(batch, kept.get(step.slot), context)
            batch, kept[FAILED] = leave(batch, kept.get(FAILED))
        return batch, {slot: memory for slot, memory in kept.items() if memory is not None}


def chain(stages: Iterable[tuple[str, Stage]]) -> Chain:
    """Named stages as a chain. A stage's slot is its own name unless its class says `slot`."""
    return Chain(tuple(Step(name=name, stage=stage, slot=slot_of(stage, name)) for name, stage in stages))


def slot_of(idea: object, name: str) -> str:
    return str(getattr(type(idea), "slot", name))


def check_wiring(
    drawn: Iterable[Column],
    collect: Sequence[tuple[str, Stage]],
    learn: Sequence[tuple[str, Stage]],
    objective: tuple[str, Objective],
) -> list[str]:
    """One sentence for every column that is read before anything has written it; empty when the wiring is right."""
    problems: list[str] = []
    written: dict[str, Column] = {column.name: column for column in drawn}
    for part, stages in (("collect", collect), ("learn", learn)):
        for name, stage in stages:
            problems += [
                _unwritten(f"stage '{name}'", column, written, part) for column in _missing(stage.reads, written)
            ]
            written |= {column.name: column for column in stage.writes}
    provided = written | {column.name: column for column in PROVIDED}
    name, priced = objective
    problems += [
        _unwritten(f"objective '{name}'", column, provided, "learn") for column in _missing(priced.reads, provided)
    ]
    return problems


def _missing(reads: Iterable[Column], written: Mapping[str, Column]) -> list[Column]:
    return [column for column in reads if column.name not in written and column.default is None]


def _unwritten(reader: str, column: Column, written: Mapping[str, Column], part: str) -> str:
    near = difflib.get_close_matches(column.name, written, n=1)
    hint = f" (written so far, and nearest: '{near[0]}')" if near else ""
    unwritten = f"{reader} reads '{column.name}' ({column.meaning}), which nothing before it writes{hint}"
    return f"{unwritten}; add a stage that writes it to `{part}`."
