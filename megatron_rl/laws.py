"""Next-token laws that an engine shows: what exact reuse of drafts needs, beside the law of each token alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import DRAFT_LAW_LOGPROBS, DRAFT_LAW_TOKENS, PROMPT_TOKENS, TOKENS
from megatron_rl.batch.ragged import Ragged


class Laws(NamedTuple):
    """The likeliest tokens at every response token, the same number at each, and their log-probabilities.

    Responses of 2 and 1 tokens with 3 tokens a law are rows of 6 and 3, and of 2 and 1 scores.
    """

    tokens: Ragged
    logprobs: Ragged
    scores: Ragged
    """Log-probability of the response token itself, as `RolloutEngine.score` says it."""


@runtime_checkable
class ShowsLaws(Protocol):
    """An engine that can show whole laws."""

    def laws(self, batch: Batch, top: int) -> Laws:
        """The law that each response token stood in, its `top` likeliest tokens or, at 0, all of them."""


def shown(engine: object) -> ShowsLaws:
    """The engine, if it shows laws; an error that says what to do otherwise."""
    if not isinstance(engine, ShowsLaws):
        raise TypeError(
            f"exact reuse of drafts asks the engine for next-token laws, which {type(engine).__name__} does not show; "
            "set rollout to embedded, or leave drafts.reuse.laws at null"
        )
    return engine


def law_behind(asked: Batch, cut_N: Tensor, engine: object) -> Tensor:
    """The engine's whole law (N, V) of the token that each response has behind its first `cut_N`."""
    prompts, tokens = asked.ragged(PROMPT_TOKENS), asked.ragged(TOKENS)
    next_N = Ragged.from_lengths(tokens.values[tokens.offsets[:-1] + cut_N], torch.ones_like(cut_N))
    laws = shown(engine).laws(Batch.of({PROMPT_TOKENS: prompts.append(tokens.head(cut_N)), TOKENS: next_N}), 0)
    count = len(laws.tokens.values) // len(asked)
    return spread_out(laws.tokens.values.view(-1, count), laws.logprobs.values.view(-1, count), count)


def held_law(drafts: Batch, cut_N: Tensor, vocabulary: int) -> Tensor:
    """What the drafts hold of their laws there, zero elsewhere."""
    tokens = drafts.ragged(TOKENS)
    at_N = tokens.offsets[:-1] + cut_N
    token_TK = drafts.ragged(DRAFT_LAW_TOKENS).values.view(len(tokens.values), -1)
    logprob_TK = drafts.ragged(DRAFT_LAW_LOGPROBS).values.view(len(tokens.values), -1)
    return spread_out(token_TK[at_N], logprob_TK[at_N], vocabulary)


def spread_out(tokens_NK: Tensor, logprobs_NK: Tensor, vocabulary: int) -> Tensor:
    """Probabilities of N laws over the whole vocabulary, zero where a law was not kept."""
    law_NV = torch.zeros(len(tokens_NK), vocabulary, dtype=torch.float64)
    return law_NV.scatter(1, tokens_NK.long(), logprobs_NK.double().exp())
