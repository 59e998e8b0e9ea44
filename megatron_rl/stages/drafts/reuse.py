"""SPEC-RL, before the engine: which tokens of the last response the present policy keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    EPOCH,
    FINISH,
    GROUP,
    PHASE,
    PREFIX,
    PREFIX_FINISH,
    PREFIX_LOGPROBS,
    PROMPT_ID,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    REUSED,
    SAMPLER_LOGPROBS,
    SLOT,
    TOKENS,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.drawing import Key, rollout_keys
from megatron_rl.ops.acceptance import Drafts, Verdict, verify
from megatron_rl.ops.noise import fold, uniforms
from megatron_rl.ops.segments import positions
from megatron_rl.ports import Context

Side = Literal["engine", "actor"]


class Found(NamedTuple):
    """Rows that have a draft, and the drafts in the same order."""

    row_N: Tensor
    drafts: Batch


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Writes `prefix`: the draft up to its first rejected token. A response kept whole never reaches the engine.

    A draft token is accepted with probability min(1, e^log_lenience * p_new / p_old) (SPEC-RL).
    """

    slot: ClassVar[str] = "drafts"
    requires: ClassVar = {"drafts.remember": "there are no drafts unless it keeps the responses"}
    reads = (PROMPT_ID, GROUP, SLOT, PROMPT_TOKENS, EPOCH, PHASE)
    writes = (PREFIX, PREFIX_LOGPROBS, PREFIX_FINISH, RESPONSE_TEXT, REUSED)
    uses: ClassVar[tuple[str, ...]] = ("engine", "actor")

    log_lenience: float = 0.5
    """Natural logarithm of the lenience; 0 is the vanilla rule, negative is stricter, .inf keeps everything."""
    max_age_epochs: int = 1
    """Older drafts are not used."""
    side: Side = "engine"
    """Who scores drafts; both the old and the new log-probabilities come from this side."""
    phases: tuple[str, ...] = ("train", "continue")
    """Rollouts that may start from a draft; screening ones are left alone, since reuse would repeat their outcome."""

    def __post_init__(self) -> None:
        if "screen" in self.phases and self.log_lenience > 0:
            raise ValueError(
                f"drafts.reuse: log_lenience is {self.log_lenience} with 'screen' among the phases; lenient screening "
                "repeats last epoch's outcome: set log_lenience to 0 or less, or leave 'screen' out"
            )

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        state = dict(memory) if isinstance(memory, Mapping) else {"cache": None, "law": "", "side": "", "waves": 0}
        wave = state["waves"]
        assert isinstance(wave, int), "drafts.remember counts the waves"
        law = repr(context.engine.sampling)
        usable = state["cache"] if (state["law"], state["side"]) == (law, self.side) else None
        state |= {"law": law, "side": self.side, "cache": usable}
        found = self._find(batch, usable)
        if not len(found.row_N):
            return _ask_for_everything(batch), state
        drafts = found.drafts
        asked = batch.take(found.row_N).select([PROMPT_TOKENS]).with_columns(tokens=drafts.ragged(TOKENS))
        new = context.engine.score(asked) if self.side == "engine" else context.actor.score(asked)
        keys = [rollout_keys(batch)[row] for row in found.row_N.tolist()]
        verdict = self._verify(drafts, new, fold(context.key("drafts", wave), keys), context.engine.max_tokens)
        return _ask_for_the_rest(batch, found, new, verdict), state

    def _verify(self, drafts: Batch, new: Ragged, key_N: Tensor, max_tokens: int) -> Verdict:
        finished_N = torch.tensor([finish == "stop" for finish in drafts.strings(FINISH)])
        old = drafts.ragged(SAMPLER_LOGPROBS)
        uniform_T = uniforms(key_N[old.row_T], positions(old.offsets))
        scored = Drafts(new.values.double(), old.values.double(), old.offsets, finished_N)
        return verify(scored, uniform_T, self.log_lenience, max_tokens)

    def _find(self, batch: Batch, cache: Memory) -> Found:
        if not isinstance(cache, Batch):
            return Found(torch.zeros(0, dtype=torch.int64), batch.where(torch.zeros(len(batch))))
        place = {key: row for row, key in enumerate(cached_keys(cache))}
        age_limit = self.max_age_epochs
        epochs, drawn_in, phases = cache.numbers(EPOCH).tolist(), batch.numbers(EPOCH).tolist(), batch.strings(PHASE)
        ours, theirs = batch.ragged(PROMPT_TOKENS), cache.ragged(PROMPT_TOKENS)

        def is_usable(row: int, draft: int) -> bool:
            is_fresh = 0 <= drawn_in[row] - epochs[draft] <= age_limit
            return is_fresh and phases[row] in self.phases and torch.equal(ours.row(row), theirs.row(draft))

        pairs = [
            (row, place[key])
            for row, key in enumerate(rollout_keys(batch))
            if key in place and is_usable(row, place[key])
        ]
        row_N, draft_N = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        return Found(row_N, cache.take(draft_N))


def cached_keys(cache: Batch) -> list[Key]:
    """The keys of the cache's rows, whose GROUP holds the number within the wave that the rollout's group had."""
    numbers = zip(cache.numbers(SLOT).tolist(), cache.numbers(GROUP).tolist(), strict=True)
    return [(prompt, slot, group) for prompt, (slot, group) in zip(cache.strings(PROMPT_ID), numbers, strict=True)]


def _ask_for_everything(batch: Batch) -> Batch:
    nothing = Ragged.from_lengths(torch.zeros(0), torch.zeros(len(batch), dtype=torch.int64))
    empty = [""] * len(batch)
    return batch.with_columns(
        prefix=nothing, prefix_logprobs=nothing, prefix_finish=empty, response_text=empty, reused=[0] * len(batch)
    )


def _ask_for_the_rest(batch: Batch, found: Found, new: Ragged, verdict: Verdict) -> Batch:
    """Requests that begin with what was kept; the prefix carries the log-probabilities of the present policy."""
    drafts, count = found.drafts, len(batch)
    cut_B = torch.zeros(count, dtype=torch.int64).index_copy(0, found.row_N, verdict.cut_B)
    finish, text = [""] * count, [""] * count
    length_N = drafts.ragged(TOKENS).length_B
    for place, row in enumerate(found.row_N.tolist()):
        # A draft that a smaller budget has clipped goes to the engine after all, which reads its text anew.
        is_whole = int(verdict.cut_B[place]) == int(length_N[place])
        if is_whole and not verdict.needs_generation_B[place]:
            finish[row], text[row] = drafts.strings(FINISH)[place], drafts.strings(RESPONSE_TEXT)[place]
    return batch.with_columns(
        prefix=Ragged.from_lengths(drafts.ragged(TOKENS).head(verdict.cut_B).values, cut_B),
        prefix_logprobs=Ragged.from_lengths(new.head(verdict.cut_B).values, cut_B),
        prefix_finish=finish,
        response_text=text,
        reused=cut_B,
    ).with_metrics(_metrics(found, new, verdict))


def _metrics(found: Found, new: Ragged, verdict: Verdict) -> dict[str, float]:
    old_T = found.drafts.ragged(SAMPLER_LOGPROBS).values.double()
    drift_T = new.values.double() - old_T
    return {
        "drafts/found": float(len(found.row_N)),
        "drafts/reused_share": verdict.reused_fraction,
        "drafts/whole_share": verdict.full_reuse_fraction,
        "drafts/cut_mean": float(verdict.cut_B.double().mean()),
        "drafts/log_ratio_mean": float(drift_T.mean()) if len(drift_T) else 0.0,
        "drafts/rejection_mean": float((1 - drift_T.clamp_max(0).exp()).mean()) if len(drift_T) else 0.0,
        "drafts/verified_tokens": float(len(old_T)),
    }
