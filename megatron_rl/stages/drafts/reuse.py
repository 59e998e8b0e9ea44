"""SPEC-RL, before the engine: which tokens of the last response the present policy keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    DRAFT_LAW_LOGPROBS,
    DRAFT_LAW_TOKENS,
    DRAFT_WEIGHTS,
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
    VERSION,
)
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.drawing import Key, rollout_keys
from megatron_rl.laws import Laws, held_law, law_behind, shown
from megatron_rl.ops.acceptance import Drafts, Verdict, acceptance, draw_residual, reuse_correction, verify
from megatron_rl.ops.noise import fold, uniforms
from megatron_rl.ops.segments import positions
from megatron_rl.ports import Context

Side = Literal["engine", "actor"]
NOTHING: Mapping[str, Memory] = {"cache": None, "law": "", "side": "", "laws": None, "waves": 0}
"""The memory before the first wave."""


class Found(NamedTuple):
    """Rows that have a draft, and the drafts in the same order."""

    row_N: Tensor
    drafts: Batch


class Looked(NamedTuple):
    """What the present policy makes of the drafts: their tokens' log-probabilities, what is kept, what follows it."""

    new: Ragged
    verdict: Verdict
    next: Ragged
    """After a rejection in exact reuse: the token drawn in its place, one for the row or none."""
    next_logprobs: Ragged
    weights: Ragged
    """Of the kept tokens, for `drafts.correct`."""
    laws: tuple[Ragged, Ragged]
    """Of the kept tokens in exact reuse, for `drafts.remember`: tokens of the present laws, their log-probabilities."""


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Writes `prefix`: the draft up to its first rejected token. A response kept whole never reaches the engine.

    A draft token is accepted with probability min(1, e^log_lenience * p_new / p_old) (SPEC-RL). What follows a
    rejection is drawn from p_new, which shifts the law of that token; with `laws` it is drawn from the residual law,
    which leaves it exactly p_new's. What the present version of the policy wrote or verified itself is no draft: it
    would be kept whole, and one rollout come twice.
    """

    slot: ClassVar[str] = "drafts"
    requires: ClassVar = {"drafts.remember": "there are no drafts unless it keeps the responses"}
    reads = (PROMPT_ID, GROUP, SLOT, PROMPT_TOKENS, EPOCH, PHASE)
    writes = (
        PREFIX,
        PREFIX_LOGPROBS,
        PREFIX_FINISH,
        RESPONSE_TEXT,
        REUSED,
        DRAFT_WEIGHTS,
        DRAFT_LAW_TOKENS,
        DRAFT_LAW_LOGPROBS,
    )

    log_lenience: float = 0.5
    """Natural logarithm of the lenience; 0 is the vanilla rule, negative is stricter, .inf keeps everything."""
    max_age_epochs: int = 1
    """Older drafts are not used."""
    side: Side = "engine"
    """Who scores drafts; both the old and the new log-probabilities come from this side."""
    laws: int | None = None
    """Exact reuse: likeliest tokens kept of each old law, 0 for all; null keeps none and is not exact."""
    phases: tuple[str, ...] = ("train", "continue")
    """Rollouts that may start from a draft; screening ones are left alone, since reuse would repeat their outcome."""

    def __post_init__(self) -> None:
        if "screen" in self.phases and self.log_lenience > 0:
            raise ValueError(
                f"drafts.reuse: log_lenience is {self.log_lenience} with 'screen' among the phases; lenient screening "
                "repeats last epoch's outcome: set log_lenience to 0 or less, or leave 'screen' out"
            )
        if self.laws is not None and (self.laws < 0 or self.log_lenience > 0 or self.side != "engine"):
            raise ValueError(
                f"drafts.reuse: laws is {self.laws} with log_lenience {self.log_lenience} and side '{self.side}'; "
                "exact reuse needs laws of at least 0, a log_lenience of at most 0, and the engine's side"
            )

    @property
    def uses(self) -> tuple[str, ...]:
        return ("engine",) if self.side == "engine" else ("engine", "actor")

    @property
    def needs_laws(self) -> bool:
        """Whether the engine is asked for next-token laws."""
        return self.laws is not None

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        state = dict(memory) if isinstance(memory, Mapping) else dict(NOTHING)
        wave = state["waves"]
        assert isinstance(wave, int), "drafts.remember counts the waves"
        law = repr(context.engine.sampling)
        from_same = (state["law"], state["side"], state["laws"]) == (law, self.side, self.laws)
        usable = state["cache"] if from_same else None
        state |= {"law": law, "side": self.side, "laws": self.laws, "cache": usable}
        found = self._find(batch, usable, context.version)
        if not len(found.row_N):
            return _ask_for_everything(batch), state
        keys = [rollout_keys(batch)[row] for row in found.row_N.tolist()]
        looked = self._look(found.drafts, keys, wave, context)
        return _ask_for_the_rest(batch, found, looked).with_metrics(self._metrics(found, looked)), state

    def _look(self, drafts: Batch, keys: list[Key], wave: int, context: Context) -> Looked:
        asked, none = drafts.select([PROMPT_TOKENS, TOKENS]), _nothing(len(drafts))
        key_N, max_tokens = fold(context.key("drafts", wave), keys), context.engine.max_tokens
        if self.laws is None:
            new = context.engine.score(asked) if self.side == "engine" else context.actor.score(asked)
            verdict = self._verify(drafts, new, key_N, max_tokens)
            return Looked(new, verdict, none, none, self._weights(drafts, new, verdict), (none, none))
        now = shown(context.engine).laws(asked, self.laws)
        verdict = self._verify(drafts, now.scores, key_N, max_tokens)
        weights = self._weights(drafts, now.scores, verdict)
        kept_B = verdict.cut_B * (len(now.tokens.values) // max(len(now.scores.values), 1))
        laws = now.tokens.head(kept_B), now.logprobs.head(kept_B)
        if bool(verdict.whole_B.all()):
            return Looked(now.scores, verdict, none, none, weights, laws)
        drawn, logprobs = self._instead(drafts, now, verdict, fold(context.key("residual", wave), keys), context)
        return Looked(now.scores, verdict, drawn, logprobs, weights, laws)

    def _instead(
        self, drafts: Batch, now: Laws, verdict: Verdict, key_N: Tensor, context: Context
    ) -> tuple[Ragged, Ragged]:
        """Tokens drawn from the residual law in place of the rejected ones, and their present log-probabilities."""
        rejected_B = ~verdict.whole_B
        cut_N, rejected = verdict.cut_B[rejected_B], drafts.where(rejected_B)
        if self.laws:
            law_NV = law_behind(rejected, cut_N, context.engine)
        else:
            whole = drafts.with_columns({DRAFT_LAW_TOKENS: now.tokens, DRAFT_LAW_LOGPROBS: now.logprobs})
            law_NV = held_law(whole.where(rejected_B), cut_N, len(now.tokens.values) // len(now.scores.values))
        uniform_N = uniforms(key_N[rejected_B], torch.zeros(len(law_NV)))
        old_NV = held_law(rejected, cut_N, law_NV.shape[1])
        token_N = draw_residual(law_NV, old_NV, uniform_N, math.exp(self.log_lenience))
        drawn = Ragged.from_lengths(token_N.int(), rejected_B.long())
        return drawn, Ragged(law_NV.gather(1, token_N[:, None]).squeeze(1).log().float(), drawn.offsets)

    def _verify(self, drafts: Batch, new: Ragged, key_N: Tensor, max_tokens: int) -> Verdict:
        finished_N = torch.tensor([finish == "stop" for finish in drafts.strings(FINISH)])
        old = drafts.ragged(SAMPLER_LOGPROBS)
        uniform_T = uniforms(key_N[old.row_T], positions(old.offsets))
        eligible_T = None
        if self.laws is not None and len(old.values):
            law_TK = drafts.ragged(DRAFT_LAW_TOKENS).values.view(len(old.values), -1)
            eligible_T = (law_TK == drafts.ragged(TOKENS).values[:, None]).any(1)
        scored = Drafts(new.values.double(), old.values.double(), old.offsets, finished_N, eligible_T)
        return verify(scored, uniform_T, self.log_lenience, max_tokens)

    def _weights(self, drafts: Batch, new: Ragged, verdict: Verdict) -> Ragged:
        """One for every kept token where reuse is exact."""
        log_ratio_T = new.values.double() - drafts.ragged(SAMPLER_LOGPROBS).values.double()
        one_T = torch.ones_like(log_ratio_T)
        if self.laws is None and len(log_ratio_T):
            mean = float(acceptance(log_ratio_T, self.log_lenience).mean())
            one_T = reuse_correction(log_ratio_T, one_T, self.log_lenience, mean)
        return Ragged(one_T.float(), new.offsets).head(verdict.cut_B)

    def _metrics(self, found: Found, looked: Looked) -> dict[str, float]:
        old_T = found.drafts.ragged(SAMPLER_LOGPROBS).values.double()
        drift_T, verdict = looked.new.values.double() - old_T, looked.verdict
        alpha_T = acceptance(drift_T, self.log_lenience)
        cuts = {f"drafts/cut_p{share}": float(verdict.cut_B.double().quantile(share / 100)) for share in (10, 50, 90)}
        return cuts | {
            "drafts/found": float(len(found.row_N)),
            "drafts/reused_share": verdict.reused_fraction,
            "drafts/whole_share": verdict.full_reuse_fraction,
            "drafts/cut_mean": float(verdict.cut_B.double().mean()),
            "drafts/log_ratio_mean": float(drift_T.mean()) if len(drift_T) else 0.0,
            "drafts/rejection_mean": float((1 - alpha_T).mean()) if len(drift_T) else 0.0,
            "drafts/verified_tokens": float(len(old_T)),
            "drafts/reused_tokens": float(verdict.cut_B.sum()),
        }

    def _find(self, batch: Batch, cache: Memory, version: int) -> Found:
        if not isinstance(cache, Batch):
            return Found(torch.zeros(0, dtype=torch.int64), batch.where(torch.zeros(len(batch), dtype=torch.bool)))
        place = {key: row for row, key in enumerate(cached_keys(cache))}
        age_limit, versions = self.max_age_epochs, cache.numbers(VERSION).tolist()
        epochs, drawn_in, phases = cache.numbers(EPOCH).tolist(), batch.numbers(EPOCH).tolist(), batch.strings(PHASE)
        ours, theirs = batch.ragged(PROMPT_TOKENS), cache.ragged(PROMPT_TOKENS)

        def is_usable(row: int, draft: int) -> bool:
            is_fresh = 0 <= drawn_in[row] - epochs[draft] <= age_limit and versions[draft] != version
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


def _nothing(rows: int) -> Ragged:
    return Ragged.from_lengths(torch.zeros(0), torch.zeros(rows, dtype=torch.int64))


def _ask_for_everything(batch: Batch) -> Batch:
    nothing, empty = _nothing(len(batch)), [""] * len(batch)
    return batch.with_columns(
        prefix=nothing,
        prefix_logprobs=nothing,
        prefix_finish=empty,
        response_text=empty,
        reused=[0] * len(batch),
        draft_weights=nothing,
        draft_law_tokens=nothing,
        draft_law_logprobs=nothing,
    )


def _ask_for_the_rest(batch: Batch, found: Found, looked: Looked) -> Batch:
    """Requests that begin with what was kept; the prefix carries the log-probabilities of the present policy."""
    drafts, verdict, count = found.drafts, looked.verdict, len(batch)
    finish, text = [""] * count, [""] * count
    length_N = drafts.ragged(TOKENS).length_B
    for place, row in enumerate(found.row_N.tolist()):
        # A draft that a smaller budget has clipped goes to the engine after all, which reads its text anew.
        is_whole = int(verdict.cut_B[place]) == int(length_N[place])
        if is_whole and not verdict.needs_generation_B[place]:
            finish[row], text[row] = drafts.strings(FINISH)[place], drafts.strings(RESPONSE_TEXT)[place]

    def placed(rows: Ragged) -> Ragged:
        """Rows of drafts at the rows of the batch, which are empty where there was no draft."""
        length_B = torch.zeros(count, dtype=torch.int64).index_copy(0, found.row_N, rows.length_B)
        return Ragged.from_lengths(rows.values, length_B)

    return batch.with_columns(
        prefix=placed(drafts.ragged(TOKENS).head(verdict.cut_B).append(looked.next)),
        prefix_logprobs=placed(looked.new.head(verdict.cut_B).append(looked.next_logprobs)),
        prefix_finish=finish,
        response_text=text,
        reused=torch.zeros(count, dtype=torch.int64).index_copy(0, found.row_N, verdict.cut_B),
        draft_weights=placed(looked.weights),
        draft_law_tokens=placed(looked.laws[0]),
        draft_law_logprobs=placed(looked.laws[1]),
    )
