"""What may stand together in one configuration: refused at load, with the reason, where the result could not be right.

Three rules follow from columns alone: a decision is made once, what is decided is used, and an idea gets the company it
asks for. For what columns cannot tell, an idea says `conflicts` or `requires`: names of other ideas, with the reason.
Collecting ahead adds rules of its own, since two threads then work at the same time; so do engines that sleep, and that
take weights while they write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from megatron_rl.batch.columns import (
    ADVANTAGE,
    DICTIONARY,
    PREFIX,
    REFERENCE_REWARDS,
    REWARD,
    SAMPLER_LOGPROBS,
    TOKENS,
    Column,
)
from megatron_rl.pipeline import slot_of
from megatron_rl.ports import Objective, Sampler, Stage

Named = tuple[str, Sampler | Stage | Objective]

LEARNING, COLLECTING = ("actor", "critic"), ("engine", "judge")
"""Machines that are busy while the actor learns, and while rollouts are written."""
IN_TURN = "leave schedule.ahead at 0"


class Chosen(NamedTuple):
    """What a configuration chose of each seam that a loss is made with, under its names."""

    sampler: tuple[str, Sampler]
    collect: Sequence[tuple[str, Stage]]
    learn: Sequence[tuple[str, Stage]]
    objective: tuple[str, Objective]


def check_combination(chosen: Chosen) -> list[str]:
    """One sentence for every pair that cannot be right together; empty when all fit."""
    sampler, collect, learn, objective = chosen
    return [
        *_disagreements((sampler, *collect, *learn, objective)),
        *_overwritten((*collect, *learn)),
        *_too_late((*collect, *learn)),
        *_unused(learn, objective),
        *_shaped((*collect, *learn)),
        *_too_few(sampler, objective),
        *_uncorrected_tokens(collect, objective),
    ]


def check_ahead(chosen: Chosen) -> list[str]:
    """One sentence for all that cannot be while rollouts are written ahead; empty when everything can."""
    sampler, collect, learn, objective = chosen
    return [
        *_busy("collect", collect, LEARNING, f"which learns at that time; {IN_TURN}"),
        *_busy("learn", learn, COLLECTING, f"which is at work on later rollouts at that time; {IN_TURN}"),
        *_shared_memory(sampler, collect, learn),
        *_uncorrected(objective, "schedule.ahead"),
    ]


def check_sleep(chosen: Chosen) -> list[str]:
    """One sentence for each stage that asks an engine which sleeps while the actor learns."""
    return [*_busy("learn", chosen.learn, ("engine",), "which sleeps at that time; leave rollout.vllm.sleep false")]


def check_in_flight(chosen: Chosen) -> list[str]:
    """One sentence for each stage that settles what responses begin with, where weights may come before they go on."""
    return [
        f"'{name}' verifies what responses begin with under one version, and with rollout.vllm.in_flight the next may "
        "come before they go on; leave one of them out."
        for name, stage in chosen.collect
        if PREFIX in stage.writes
    ]


def check_laws(chosen: Chosen) -> list[str]:
    """One sentence for each stage that asks for next-token laws, where the engine shows none."""
    return [
        f"'{name}' asks the engine for next-token laws, which vLLM does not show; set rollout to embedded, or leave "
        "its `laws` at null."
        for name, stage in chosen.collect
        if getattr(stage, "needs_laws", False)
    ]


def _busy(chain: str, stages: Sequence[tuple[str, Stage]], machines: Sequence[str], why: str) -> Iterator[str]:
    for name, stage in stages:
        for machine in sorted({*getattr(stage, "uses", ())} & {*machines}):
            yield f"'{name}' asks the {machine} in `{chain}`, {why}, or do without it there."


def _shared_memory(
    sampler: tuple[str, Sampler], collect: Sequence[tuple[str, Stage]], learn: Sequence[tuple[str, Stage]]
) -> Iterator[str]:
    collecting = {slot_of(idea, name): name for name, idea in (sampler, *collect)}
    for name, stage in learn:
        if (other := collecting.get(slot_of(stage, name))) is not None:
            yield (
                f"'{name}' in `learn` shares the memory of '{other}', which collects ahead of it; leave schedule.ahead "
                "at 0, or move it to `collect`."
            )


def _uncorrected(objective: tuple[str, Objective], cause: str) -> list[str]:
    """An advantage is weighed under the policy as it is; tokens of an older one need their weight."""
    name, priced = objective
    read = {column.name for column in priced.reads}
    if ADVANTAGE.name not in read or SAMPLER_LOGPROBS.name in read:
        return []
    return [
        f"{cause} has tokens written by older weights, for which objective '{name}' does not correct: it never reads "
        f"'{SAMPLER_LOGPROBS.name}'; set its `truncate`, normally to 2.0."
    ]


def _uncorrected_tokens(collect: Sequence[tuple[str, Stage]], objective: tuple[str, Objective]) -> Iterator[str]:
    for name, stage in collect:
        if getattr(stage, "mixes_versions", False):
            yield from _uncorrected(objective, f"'{name}'")


def _disagreements(ideas: Sequence[Named]) -> Iterator[str]:
    names = {name for name, _ in ideas}
    for name, idea in ideas:
        for other, reason in _said(idea, "conflicts").items():
            if other in names:
                yield f"'{name}' and '{other}' do not go together: {reason}."
        for other, reason in _said(idea, "requires").items():
            if other not in names:
                yield f"'{name}' needs '{other}' beside it: {reason}."


def _overwritten(stages: Sequence[tuple[str, Stage]]) -> Iterator[str]:
    """Two stages that decide the same thing: the later one would silently win."""
    unread: dict[str, str] = {}
    for name, stage in stages:
        seen = {column.name for column in (*stage.reads, *_may_read(stage))}
        unread = {column: writer for column, writer in unread.items() if column not in seen}
        for column in stage.writes:
            if column.name in unread:
                yield (
                    f"'{unread[column.name]}' and '{name}' both write '{column.name}' ({column.meaning}), and nothing "
                    "between them reads it; keep one."
                )
            unread[column.name] = name


def _too_late(stages: Sequence[tuple[str, Stage]]) -> Iterator[str]:
    """What responses begin with, after they were written."""
    wrote = ""
    for name, stage in stages:
        if wrote and PREFIX in stage.writes:
            yield f"'{name}' writes what responses begin with, and '{wrote}' has written them before; put it first."
        wrote = name if TOKENS in stage.writes else wrote


def _unused(learn: Sequence[tuple[str, Stage]], objective: tuple[str, Objective]) -> Iterator[str]:
    """A stage of which nothing reaches the loss: the configuration says one method, the loss is another's."""
    readers: list[tuple[Column, ...]] = [(*stage.reads, *_may_read(stage)) for _, stage in learn]
    readers.append(tuple(objective[1].reads))
    for place, (name, stage) in enumerate(learn):
        later = {column.name for reads in readers[place + 1 :] for column in reads}
        written = [column for column in stage.writes if column.name in DICTIONARY]
        # A stage that asks a machine may be there for what it does, and one with columns of its own for the record.
        does_more = getattr(stage, "uses", ()) or len(written) < len(stage.writes)
        if written and not does_more and not later & {column.name for column in written}:
            columns = " and ".join(f"'{column.name}'" for column in written)
            yield (
                f"'{name}' writes {columns}, which objective '{objective[0]}' and the stages after it never read; "
                "leave it out, or take another objective."
            )


def _shaped(stages: Sequence[tuple[str, Stage]]) -> Iterator[str]:
    """A value run's rewards stay as they were judged, and so do those of rollouts that a stage asks for itself."""
    shaping = [name for name, stage in stages if REWARD in stage.reads and REWARD in stage.writes]
    for name, stage in stages if shaping else ():
        is_apart = "judge" in getattr(stage, "uses", ()) and REWARD not in stage.writes
        if is_apart or REFERENCE_REWARDS in stage.reads:
            whose = "rollouts of its own" if is_apart else "the value run"
            yield (
                f"'{name}' compares rewards with those of {whose}, which are not shaped, and '{shaping[0]}' "
                "changes the former alone; leave it out, or make it part of the reward function."
            )


def _too_few(sampler: tuple[str, Sampler], objective: tuple[str, Objective]) -> Iterator[str]:
    """A loss between rollouts of one prompt is zero where there is one: it would run, and learn nothing."""
    least = getattr(objective[1], "least_rollouts", 1)
    if (drawn := getattr(sampler[1], "samples", least)) < least:
        yield (
            f"objective '{objective[0]}' compares rollouts of one prompt, and '{sampler[0]}' draws {drawn} of each; "
            f"set its `samples` to at least {least}."
        )


def _said(idea: object, what: str) -> Mapping[str, str]:
    said: Mapping[str, str] = getattr(idea, what, {})
    return said


def _may_read(stage: Stage) -> tuple[Column, ...]:
    columns: tuple[Column, ...] = getattr(type(stage), "may_read", ())
    return columns
