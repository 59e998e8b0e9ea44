"""Next-token laws that an engine shows: what exact reuse of drafts needs, beside the law of each token alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.ragged import Ragged


class Laws(NamedTuple):
    """The likeliest tokens at every response token, the same number at each, and their log-probabilities.

    Responses of 2 and 1 tokens with 3 tokens a law are rows of 6 and 3.
    """

    tokens: Ragged
    logprobs: Ragged


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


def spread_out(tokens_NK: Tensor, logprobs_NK: Tensor, vocabulary: int) -> Tensor:
    """Probabilities of N laws over the whole vocabulary, zero where a law was not kept."""
    law_NV = torch.zeros(len(tokens_NK), vocabulary, dtype=torch.float64)
    return law_NV.scatter(1, tokens_NK.long(), logprobs_NK.double().exp())
