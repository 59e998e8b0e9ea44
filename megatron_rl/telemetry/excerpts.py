"""A bounded excerpt of a run's rollouts for the report: whole groups of evenly spaced steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ADVANTAGE,
    ANSWER,
    CORRECT,
    ERROR,
    EXTRACTED,
    FINISH,
    GROUP,
    PROMPT_ID,
    PROMPT_TEXT,
    RESPONSE_TEXT,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
    SOURCE,
    TOKENS,
    VERDICT,
    Column,
)
from megatron_rl.telemetry.rollouts import FOLDER, read_pieces, rollout_files

_LOGPROB_UNIT = 0.01
_MOST_PROMPT = 4000


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much of a run the report may hold. The defaults keep it under about 4 MB a run."""

    steps: int = 24
    groups: int = 6
    mates: int = 8
    tokens: int = 1200
    """Tokens shown of one response: the first two thirds and the last third of them."""
    total_tokens: int = 300_000
    """Tokens of all shown responses together, shared evenly by the steps."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One rollout as the page shows it.

    Shown(token=[0, 4, 1], surprise=[12, 340, 3], advantage=[0.5], gap=-1, length=3, ...) wrote pieces 0, 4 and 1, the
    second of them with log-probability -3.40. One advantage stands for all tokens. `gap` is where tokens were left out.
    """

    token: list[int]
    surprise: list[int]
    """Minus the log-probability, in hundredths."""
    advantage: list[float]
    gap: int
    length: int
    reused: int
    text: str
    """The response, where the texts of its tokens are not known."""
    verdict: str
    correct: int
    reward: float | None
    extracted: str
    finish: str
    error: str


@dataclass(frozen=True, kw_only=True)
class ShownGroup:
    step: int
    group: int
    prompt_id: str
    source: str
    prompt: str
    answer: str
    size: int
    """Rollouts the group has; the page may hold fewer."""
    rollouts: list[Shown]


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    pieces: list[str]
    groups: list[ShownGroup]
    steps_kept: int
    """Steps whose rollouts the run folder holds."""


def excerpt(folder: Path, bounds: Bounds) -> Excerpt:
    """The groups the report shows. Empty where the folder holds no rollouts."""
    files = rollout_files(folder)
    steps = [list(files)[place] for place in _spread(len(files), bounds.steps)]
    texts = read_pieces(folder / FOLDER)
    places: dict[int, int] = {}
    groups: list[ShownGroup] = []
    for step in steps:
        budget = bounds.total_tokens // len(steps)
        for group in _chosen(Batch.read_parquet(files[step]), bounds):
            shown = _shown_group(step, group, texts, places, bounds)
            budget -= sum(len(rollout.token) for rollout in shown.rollouts)
            if budget < 0 and groups and groups[-1].step == step:
                break
            groups.append(shown)
    return Excerpt(pieces=[texts.get(token, f"⟨{token}⟩") for token in places], groups=groups, steps_kept=len(files))


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the places 0..count-1, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(n * (count - 1) / (most - 1)) for n in range(most)}) if most > 1 else [count - 1][:most]


def _chosen(batch: Batch, bounds: Bounds) -> list[Batch]:
    rows = batch.group_rows() if GROUP in batch else [torch.tensor([row]) for row in range(len(batch))]
    return [batch.take(rows[place]) for place in _spread(len(rows), bounds.groups)]


def _shown_group(step: int, group: Batch, texts: dict[int, str], places: dict[int, int], bounds: Bounds) -> ShownGroup:
    mates = group.take(torch.arange(min(len(group), bounds.mates)))
    return ShownGroup(
        step=step,
        group=int(group.numbers(GROUP)[0]) if GROUP in group else 0,
        prompt_id=_text(group, PROMPT_ID, 0),
        source=_text(group, SOURCE, 0),
        prompt=_text(group, PROMPT_TEXT, 0)[:_MOST_PROMPT],
        answer=_text(group, ANSWER, 0)[:_MOST_PROMPT],
        size=len(group),
        rollouts=[_shown(mates, row, texts, places, bounds.tokens) for row in range(len(mates))],
    )


def _shown(mates: Batch, row: int, texts: dict[int, str], places: dict[int, int], most: int) -> Shown:
    token_T = _row(mates, TOKENS, row).long()
    length, gap = len(token_T), -1
    kept_T = torch.arange(length)
    if length > most:
        gap = most * 2 // 3
        kept_T = torch.cat([kept_T[:gap], kept_T[length - (most - gap) :]])
    tokens = token_T[kept_T].tolist()
    surprise_T = (
        _row(mates, SAMPLER_LOGPROBS, row).neg().div(_LOGPROB_UNIT).nan_to_num(posinf=9999).clamp(0, 9999).round()
    )
    advantage_T = _row(mates, ADVANTAGE, row)
    return Shown(
        token=[places.setdefault(token, len(places)) for token in tokens],
        surprise=surprise_T[kept_T].int().tolist() if len(surprise_T) == length else [],
        advantage=_short(advantage_T, kept_T) if len(advantage_T) == length else [],
        gap=gap,
        length=length,
        reused=int(mates.numbers(REUSED)[row]),
        text="" if texts else _text(mates, RESPONSE_TEXT, row)[:_MOST_PROMPT],
        verdict=_text(mates, VERDICT, row) or "unjudged",
        correct=int(mates.numbers(CORRECT)[row]) if CORRECT in mates else 0,
        reward=float(mates.numbers(REWARD)[row].nan_to_num()) if REWARD in mates else None,
        extracted=_text(mates, EXTRACTED, row)[:_MOST_PROMPT],
        finish=_text(mates, FINISH, row),
        error=_text(mates, ERROR, row),
    )


def _short(advantage_T: Tensor, kept_T: Tensor) -> list[float]:
    """One number where all tokens have the same advantage."""
    finite_T = advantage_T.nan_to_num()
    if len(finite_T) and bool((finite_T == finite_T[0]).all()):
        finite_T, kept_T = finite_T[:1], kept_T[:1]
    return [round(value, 4) for value in finite_T[kept_T].tolist()]


def _row(batch: Batch, column: Column, row: int) -> Tensor:
    return batch.ragged(column).row(row) if column in batch else torch.zeros(0)


def _text(batch: Batch, column: Column, row: int) -> str:
    return batch.strings(column)[row] if column in batch else ""
