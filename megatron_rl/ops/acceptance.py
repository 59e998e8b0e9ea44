"""Speculative rollouts (SPEC-RL): how much of an old response the present policy keeps, and in what law the result is.

B drafts, T their flat tokens, V vocabulary, p the present (new) policy, q the policy of the draft (old).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.ops.segments import Rows, head, join, positions, row_ids

UNIFORM_FLOOR = 1e-12


class Drafts(NamedTuple):
    """Old responses with both policies' log-probabilities. A rollout without a draft is an empty, unfinished row."""

    new_logprob_T: Tensor
    old_logprob_T: Tensor
    offsets: Tensor
    finished_B: Tensor
    eligible_T: Tensor | None = None
    """Tokens that may be accepted at all: with a part of each old law, those within that part."""


class Verdict(NamedTuple):
    """What is kept of each draft, after clipping it to the response budget, and what is left to generate."""

    accept_T: Tensor
    """Of every draft token, also behind the cut."""
    offsets: Tensor
    cut_B: Tensor
    """Tokens kept: the place of the first rejection."""
    whole_B: Tensor
    needs_generation_B: Tensor
    budget_B: Tensor
    """New tokens to ask for; zero where nothing is generated."""

    @property
    def reused_fraction(self) -> float:
        return int(self.cut_B.sum()) / max(int(self.offsets[-1]), 1)

    @property
    def full_reuse_fraction(self) -> float:
        return int(self.whole_B.sum()) / max(len(self.whole_B), 1)


def verify(drafts: Drafts, uniform_T: Tensor, log_lenience: float, max_response: int) -> Verdict:
    """Keep each draft up to its first rejected token; generation resumes there with the present policy."""
    accept_T = accepted(drafts.new_logprob_T, drafts.old_logprob_T, uniform_T, log_lenience)
    accept_T = accept_T if drafts.eligible_T is None else accept_T & drafts.eligible_T
    accept_T, offsets = head(
        (accept_T, drafts.offsets), torch.full_like(drafts.finished_B, max_response, dtype=torch.int64)
    )
    length_B = offsets.diff()
    rejected_at_T = torch.where(accept_T, length_B[row_ids(offsets)], positions(offsets))
    cut_B = length_B.scatter_reduce(0, row_ids(offsets), rejected_at_T, "amin")
    whole_B = cut_B == length_B
    needs_generation_B = ~(whole_B & (drafts.finished_B.bool() | (length_B == max_response)))
    budget_B = torch.where(needs_generation_B, max_response - cut_B, 0)
    return Verdict(accept_T, offsets, cut_B, whole_B, needs_generation_B, budget_B)


def accepted(new_logprob_T: Tensor, old_logprob_T: Tensor, uniform_T: Tensor, log_lenience: float) -> Tensor:
    """Whether u <= min(1, l p/q), in logarithms.

    Infinite lenience looks at no ratio; any other rejects a token that p cannot produce.
    """
    if log_lenience == math.inf:
        return torch.ones_like(uniform_T, dtype=torch.bool)
    possible_T = new_logprob_T > -torch.inf
    gain_T = torch.where(possible_T, new_logprob_T, 0.0) - old_logprob_T + log_lenience
    return possible_T & ((gain_T >= 0) | (uniform_T.clamp_min(UNIFORM_FLOOR).log() <= gain_T))


class OutputLaw(NamedTuple):
    """Law of one verified position."""

    accept_probability: Tensor
    output_V: Tensor


def kept_mass(new_V: Tensor, old_V: Tensor, lenience: float) -> Tensor:
    """min(q, l p): probability that each token is drafted and accepted."""
    return old_V if lenience == math.inf else torch.minimum(old_V, lenience * new_V)


def output_law(new_V: Tensor, old_V: Tensor, lenience: float) -> OutputLaw:
    """The token after verification: accepted, or else drawn from the whole of p. It is p only for small lenience."""
    kept_V = kept_mass(new_V, old_V, lenience)
    mass = kept_V.sum(-1, keepdim=True)
    return OutputLaw(mass.squeeze(-1), kept_V + (1 - mass) * new_V)


def residual_law(new_V: Tensor, old_V: Tensor, lenience: float = 1.0) -> Tensor:
    """p - min(q, l p) normalised, from which a rejection at lenience l <= 1 is drawn exactly; p itself where p = q.

    Where a few tokens of q are known, the others are zero in `old_V`, and must then always be rejected.
    """
    excess_V = (new_V - kept_mass(new_V, old_V, lenience)).clamp_min(0)
    total = excess_V.sum(-1, keepdim=True)
    return torch.where(total > 0, excess_V / total, new_V)


def draw_residual(new_NV: Tensor, old_NV: Tensor, uniform_N: Tensor, lenience: float) -> Tensor:
    """A token from each residual law, by inversion."""
    mass_NV = residual_law(new_NV, old_NV, lenience).cumsum(-1)
    point_N1 = (uniform_N * mass_NV[:, -1])[:, None]
    return torch.searchsorted(mass_NV, point_N1, right=True).squeeze(1).clamp_max(mass_NV.shape[1] - 1)


def acceptance(log_ratio_T: Tensor, log_lenience: float) -> Tensor:
    """min(1, l p/q): the probability with which each draft token is kept, if those before it are."""
    if log_lenience == math.inf:
        return torch.ones_like(log_ratio_T)
    return (log_ratio_T + log_lenience).clamp_max(0).exp()


def exact_output_law(new_V: Tensor, old_V: Tensor) -> OutputLaw:
    """The token when a rejection is drawn from the residual law, as in speculative decoding: p."""
    kept_V = kept_mass(new_V, old_V, 1.0)
    mass = kept_V.sum(-1, keepdim=True)
    return OutputLaw(mass.squeeze(-1), kept_V + (1 - mass) * residual_law(new_V, old_V))


def total_variation(law_V: Tensor, other_V: Tensor) -> Tensor:
    return (law_V - other_V).abs().sum() / 2


class SequenceLaw(NamedTuple):
    """Joint law of two tokens, the first in rows."""

    joint_VV: Tensor
    target_VV: Tensor
    expected_cut: Tensor


def sequence_law(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor], lenience: float) -> SequenceLaw:
    """Two-token law after verification; each policy is its first law and its second law given the first token.

    After a rejection, and behind it, tokens are the present policy's own.
    """
    (new_V, new_VV), (old_V, old_VV) = new, old
    kept_V = kept_mass(new_V, old_V, lenience)
    second = output_law(new_VV, old_VV, lenience)
    rejected_V = (1 - kept_V.sum()) * new_V
    joint_VV = kept_V[:, None] * second.output_V + rejected_V[:, None] * new_VV
    expected_cut = kept_V.sum() + (kept_V * second.accept_probability).sum()
    return SequenceLaw(joint_VV, new_V[:, None] * new_VV, expected_cut)


class ExpectedPrefix(NamedTuple):
    """What a draft with these acceptance probabilities saves."""

    cut: Tensor
    full_reuse_probability: Tensor
    new_fraction: Tensor


def expected_prefix(accept_probability_T: Tensor) -> ExpectedPrefix:
    survive_T = accept_probability_T.cumprod(0)
    cut = survive_T.sum()
    return ExpectedPrefix(cut, accept_probability_T.prod(), 1 - cut / max(len(survive_T), 1))


class Assembled(NamedTuple):
    """Prompt and kept draft for the engine, then the response made of kept draft and suffix."""

    context: Rows
    response: Rows
    reused_T: Tensor
    """Over the response's tokens: 1 where they come from the draft."""


def assemble(prompt: Rows, draft: Rows, cut_B: Tensor, suffix: Rows, max_response: int) -> Assembled:
    """The response keeps the draft up to the cut bit for bit; a suffix over the budget is clipped."""
    kept = head(draft, cut_B)
    response = head(join(kept, suffix), torch.full_like(cut_B, max_response))
    reused_T = positions(response[1]) < cut_B[row_ids(response[1])]
    return Assembled(join(prompt, kept), response, reused_T.to(torch.uint8))


def reuse_correction(log_ratio_T: Tensor, reused_T: Tensor, log_lenience: float, mean_acceptance: float) -> Tensor:
    """Weights that restore p at a verified position: a max(p/q, 1/l) on accepted tokens, 1 on fresh ones.

    `mean_acceptance` a is the acceptance probability of the position, in practice the batch mean.
    """
    weight_T = mean_acceptance * log_ratio_T.clamp_min(-log_lenience).exp()
    return torch.where(reused_T.bool(), weight_T, 1.0)
