"""Log-probabilities of tokens: the next-token shift, chunked reading of logits, and the law tokens are drawn from.

B rollouts, T flat tokens (prompt and response packed), R flat response tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_rl.ops.segments import positions, row_ids, to_offsets


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from logits. The defaults draw from the model's own law."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Keeps the likeliest tokens that together reach this mass, after top_k."""
    top_k: int = 0
    """Keeps this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keeps tokens at least this likely relative to the likeliest."""

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise ValueError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 and 0 <= min_p <= 1, got {self}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether every token keeps a positive probability."""
        return self.temperature > 0 and self.top_p == 1 and self.top_k == 0 and self.min_p == 0


def sampling_logprobs(logits_TV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the law actually sampled from, -inf for tokens it never draws; in float32 or finer.

    The one definition for engine, verifier and actor. In order: temperature, min-p, top-k, top-p of what is left,
    renormalisation. Ties at the edge of top-k stay; at the edge of top-p the lower token id goes first.
    """
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    if sampling.temperature == 0:
        first_T1, top_T1 = logits_TV.argmax(-1, keepdim=True), logits_TV.detach().amax(-1, keepdim=True)
        # Where logits are not finite nothing is the likeliest: the row is nan, as a softmax would make it.
        return torch.full_like(logits_TV, -torch.inf).scatter(-1, first_T1, 0.0) + (top_T1 - top_T1)
    logits_TV = logits_TV / sampling.temperature
    if sampling.min_p > 0:
        least_T1 = logits_TV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits_TV = logits_TV.masked_fill(logits_TV < least_T1, -torch.inf)
    if 0 < sampling.top_k < logits_TV.shape[-1]:
        least_T1 = logits_TV.topk(sampling.top_k, -1).values[..., -1:]
        logits_TV = logits_TV.masked_fill(logits_TV < least_T1, -torch.inf)
    if sampling.top_p < 1:
        logits_TV = logits_TV.masked_fill(~_nucleus(logits_TV.detach(), sampling.top_p), -torch.inf)
    return torch.log_softmax(logits_TV, -1)


def _nucleus(logits_TV: Tensor, top_p: float) -> Tensor:
    """Tokens before which less than `top_p` of the mass lies; the likeliest is always one."""
    sorted_TV, order_TV = logits_TV.sort(stable=True, dim=-1, descending=True)
    mass_TV = torch.softmax(sorted_TV, -1)
    before_TV = mass_TV.cumsum(-1) - mass_TV
    return torch.empty_like(order_TV, dtype=torch.bool).scatter(-1, order_TV, before_TV < top_p)


class Scored(NamedTuple):
    logprob_T: Tensor
    entropy_T: Tensor


def score(logits_TV: Tensor, target_T: Tensor, sampling: Sampling, chunk: int = 1024) -> Scored:
    """Log-probability of each target under the sampling law, and that law's entropy.

    Works `chunk` positions at a time and recomputes them for the gradient, so the wide intermediate never exists whole.
    """
    pieces = [
        checkpoint(_score_chunk, logits_CV, target_C, sampling, use_reentrant=False, preserve_rng_state=False)
        for logits_CV, target_C in zip(torch.split(logits_TV, chunk), torch.split(target_T, chunk), strict=True)
    ]
    return Scored(torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces]))


def _score_chunk(logits_CV: Tensor, target_C: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    logprob_CV = sampling_logprobs(logits_CV, sampling)
    return logprob_CV.gather(-1, target_C[:, None]).squeeze(-1), entropy(logprob_CV)


def entropy(logprob_TV: Tensor) -> Tensor:
    """Entropy of each law; tokens of probability zero add nothing, to value or gradient."""
    possible_TV = logprob_TV > -torch.inf
    return -torch.where(possible_TV, logprob_TV.exp() * torch.where(possible_TV, logprob_TV, 0.0), 0.0).sum(-1)


class Response(NamedTuple):
    """Response tokens inside packed sequences of prompt and response."""

    predictor_R: Tensor
    """Where in the packed tokens the logits of each response token stand: one before the token itself."""
    offsets: Tensor


def response_predictors(offsets: Tensor, prompt_length_B: Tensor) -> Response:
    """The next-token shift, done here and nowhere else."""
    if len(prompt_length_B) and int(prompt_length_B.min()) < 1:
        raise ValueError(
            "a response token is predicted from the token before it, so every prompt needs at least one token"
        )
    response_offsets = to_offsets(offsets.diff() - prompt_length_B)
    first_B = offsets[:-1] + prompt_length_B - 1
    return Response(first_B[row_ids(response_offsets)] + positions(response_offsets), response_offsets)
