"""Requested = scored + failed: what an engine gives back is checked, row by row, before anybody learns from it.

Engines are machines of other people's making. One that loses a rollout, gives it twice, changes the order or gives a
log-probability that is none costs these rollouts, each by its name; one that dies costs the run, unless it can restart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch, Values
from megatron_rl.batch.columns import (
    BUDGET,
    ERROR,
    FINISH,
    GROUP,
    LOSS_MASK,
    PREFIX,
    PREFIX_LOGPROBS,
    PROMPT_ID,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    SEED,
    SLOT,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
    VERSION,
    Column,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import RolloutEngine

WRITTEN = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION, RESPONSE_TEXT)
RAGGED = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS)
IDENTITY = (PROMPT_ID, GROUP, SLOT, SEED)
STATUSES = ("ok", "failed")
FINISHES = ("stop", "length", "abort")
ROUNDING = 1e-3
"""A log-probability may be this much above zero."""

Key = tuple[object, ...]
"""What tells a request from the others: the values of its columns of IDENTITY."""


def rollouts_of(engine: RolloutEngine, batch: Batch, sampling: Sampling | None = None) -> Batch:
    """The engine's rollouts of every row, in order; what is wrong with one makes it a failed row that says so."""
    try:
        answer = engine.generate(batch, sampling)
    except Exception as error:
        error.add_note(f"The engine was writing {len(batch)} rollouts: {_listed(names(batch))}.")
        raise
    missing = [column.name for column in WRITTEN if column not in answer]
    if missing:
        raise RuntimeError(f"the engine owes the column {missing[0]} of {_listed(names(batch))}, and did not write it.")
    place_B, faults = _places(batch, answer)
    told = answer.select(WRITTEN)
    if not torch.equal(place_B, torch.arange(len(answer))):
        version = int(answer.numbers(VERSION).max()) if len(answer) else -1
        told = Batch.concat([told, _nothing(version)]).take(place_B)
    for row, fault in _faults(batch, told):
        faults[row] = faults[row] or fault
    is_sound = not any(faults) and "failed" not in told.strings(STATUS)
    rollouts = batch.beside(told) if is_sound else batch.with_columns(_settled(batch, told, faults))
    return rollouts.with_metrics(answer.metrics)


def names(batch: Batch) -> list[str]:
    """What a request is called when something is said of it: "rollout 3 of group 7, prompt 'gsm8k/12' (seed 5)"."""
    seeds = [f"(seed {seed})" for seed in batch.numbers(SEED).tolist()]
    if not all(column in batch for column in IDENTITY):
        return [f"request {row} {seed}" for row, seed in enumerate(seeds)]
    rows = zip(
        batch.numbers(SLOT).tolist(), batch.numbers(GROUP).tolist(), batch.strings(PROMPT_ID), seeds, strict=True
    )
    return [f"rollout {slot} of group {group}, prompt '{prompt}' {seed}" for slot, group, prompt, seed in rows]


def _places(batch: Batch, answer: Batch) -> tuple[Tensor, list[str]]:
    """The row of the answer that belongs to each request, one behind its last where none does, and what is wrong."""
    identity = [column for column in IDENTITY if column in batch and column in answer]
    if not identity:
        raise RuntimeError(f"the engine's rollouts do not say which are {_listed(names(batch))}; it keeps no column.")
    if batch.select(identity) == answer.select(identity):
        return torch.arange(len(batch)), [""] * len(batch)
    rows_of, places_of = _positions(_keys(batch, identity)), _positions(_keys(answer, identity))
    if unknown := sorted(places_of.keys() - rows_of.keys(), key=places_of.__getitem__):
        raise RuntimeError(f"the engine gave a rollout that nobody asked for: {_described(unknown[0], identity)}.")
    place_B, faults = torch.full((len(batch),), len(answer)), [""] * len(batch)
    for key, rows in rows_of.items():
        places = places_of.get(key, [])
        if len(places) == len(rows):
            place_B[rows] = torch.tensor(places)
        else:
            fault = f"was given back {len(places)} times" if places else "was not given back"
            for row in rows:
                faults[row] = fault
    found_N = (place_B < len(answer)).nonzero().flatten()
    rank_N = torch.argsort(torch.argsort(place_B[found_N]))
    for row in found_N[rank_N != torch.arange(len(found_N))].tolist():
        faults[row] = "was given back out of order"
    return place_B, faults


def _positions(keys: Sequence[Key]) -> dict[Key, list[int]]:
    positions: dict[Key, list[int]] = {}
    for place, key in enumerate(keys):
        positions.setdefault(key, []).append(place)
    return positions


def _described(key: Key, identity: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} {value}" for column, value in zip(identity, key, strict=True))


def _keys(batch: Batch, identity: Sequence[Column]) -> list[Key]:
    values = [batch.strings(column) if column is PROMPT_ID else batch.numbers(column).tolist() for column in identity]
    return list(zip(*values, strict=True))


def _faults(batch: Batch, told: Batch) -> Iterator[tuple[int, str]]:
    """What is wrong with rows, seen from what was asked. A row that failed has nothing to be wrong with."""
    status, finish = told.strings(STATUS), told.strings(FINISH)
    for row, words in enumerate(zip(status, finish, strict=True)):
        if words[0] not in STATUSES or words[1] not in FINISHES:
            yield (
                row,
                f"came back '{words[0]}' with finish '{words[1]}'; status is one of {STATUSES}, finish of {FINISHES}",
            )
    tokens, length_B = told.ragged(TOKENS), told.ragged(TOKENS).length_B
    for column in RAGGED[1:]:
        other_B = told.ragged(column).length_B
        for row in (other_B != length_B).nonzero().flatten().tolist():
            yield row, f"has {int(length_B[row])} tokens and {int(other_B[row])} of {column.name}"
    prefix_B = batch.ragged(PREFIX).length_B if PREFIX in batch else torch.zeros_like(length_B)
    given_B = prefix_B if PREFIX_LOGPROBS in batch else torch.zeros_like(length_B)
    yield from _no_logprobs(told.ragged(SAMPLER_LOGPROBS), given_B)
    if PREFIX in batch:
        begun = zip(batch.ragged(PREFIX).rows(), tokens.head(prefix_B).rows(), strict=True)
        for row, (asked_N, begun_N) in enumerate(begun):
            if status[row] == "ok" and asked_N.tolist() != begun_N.tolist():
                yield row, "does not go on from its prefix"
    if BUDGET in batch:
        most_B = torch.maximum(batch.numbers(BUDGET), prefix_B)
        for row in (length_B > most_B).nonzero().flatten().tolist():
            yield row, f"has {int(length_B[row])} tokens of at most {int(most_B[row])}"


def _no_logprobs(logprobs: Ragged, given_B: Tensor) -> Iterator[tuple[int, str]]:
    """Numbers behind those that came with the request which are no log-probability of a token that was drawn."""
    row_T = logprobs.row_T
    place_T = torch.arange(len(row_T)) - logprobs.offsets[row_T]
    bad_T = ~(logprobs.values.isfinite() & (logprobs.values <= ROUNDING)) & (place_T >= given_B[row_T])
    for index in bad_T.nonzero().flatten().tolist():
        value = float(logprobs.values[index])
        yield int(row_T[index]), f"gives response token {int(place_T[index])} the log-probability {value}"


def _nothing(version: int) -> Batch:
    """One row for a rollout that nobody gave back."""
    empty = {column: Ragged.of([[]], dtype=torch.int32) for column in RAGGED}
    words = {FINISH: ["abort"], STATUS: ["failed"], ERROR: [""], RESPONSE_TEXT: [""]}
    return Batch.of({**empty, **words, VERSION: [version]}).select(WRITTEN)


def _settled(batch: Batch, told: Batch, faults: Sequence[str]) -> dict[Column, Values]:
    """The written columns, with nothing left of the rows that failed but the reason."""
    failed = [fault != "" or status == "failed" for fault, status in zip(faults, told.strings(STATUS), strict=True)]
    kept_B = ~torch.tensor(failed, dtype=torch.bool)
    ragged = {column: told.ragged(column).head(told.ragged(column).length_B * kept_B) for column in RAGGED}
    errors, texts, finishes = told.strings(ERROR), told.strings(RESPONSE_TEXT), told.strings(FINISH)
    called = names(batch) if any(faults) else []
    for row in (~kept_B).nonzero().flatten().tolist():
        errors[row] = f"{called[row]} {faults[row]}" if faults[row] else errors[row]
        texts[row], finishes[row] = "", "abort"
    return {
        **ragged,
        FINISH: finishes,
        STATUS: ["failed" if is_failed else "ok" for is_failed in failed],
        ERROR: errors,
        VERSION: told.numbers(VERSION),
        RESPONSE_TEXT: texts,
    }


def _listed(every: Sequence[str], most: int = 8) -> str:
    return "; ".join(every[:most]) + ("; …" if len(every) > most else "")
