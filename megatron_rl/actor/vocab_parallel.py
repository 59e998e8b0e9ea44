"""Log-probabilities and entropies from logits whose vocabulary is cut over tensor ranks.

T packed tokens, R response tokens, C of them at a time, V this rank's part of the vocabulary. The law is that of
`ops.logprobs.sampling_logprobs`, with one addition: a token that was drawn is never outside the law it was drawn
from, so under top-p, top-k or min-p the target itself is always kept, whatever rounding says.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rl.ops.logprobs import Sampling, sampling_logprobs

CHUNK_NUMBERS = 2**25
"""Numbers of a float32 intermediate: what is held of it at a time."""


class Law(NamedTuple):
    """How tokens were drawn, from which vocabulary, and the tensor ranks among which the logits are cut."""

    sampling: Sampling
    vocabulary: int
    group: dist.ProcessGroup

    def start(self, width: int) -> int:
        """The first token id of this rank."""
        return self.group.rank() * width

    def columns(self, width: int) -> int:
        """How many of this rank's columns are tokens and not padding."""
        return min(max(self.vocabulary - self.start(width), 0), width)


class Scored(NamedTuple):
    logprob_R: Tensor
    entropy_R: Tensor


def score(logits_TV: Tensor, predictor_R: Tensor, target_R: Tensor, law: Law) -> Scored:
    """Log-probability of each target and entropy of its law; every tensor rank gets all of them.

    The gradient is written over the logits, so a packed batch's logits exist once, and nobody may read them afterwards.
    """
    return Scored(*_Score.apply(logits_TV, predictor_R, target_R, law))


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, logits_TV: Tensor, predictor_R: Tensor, target_R: Tensor, law: Law
    ) -> tuple[Tensor, Tensor]:
        parts = [
            _statistics(_scaled(logits_TV, index_C, target_C, law), _Local.of(target_C, logits_TV, law), law)
            for index_C, target_C in _chunks(logits_TV, predictor_R, target_R)
        ]
        logprob_R, entropy_R, normaliser_R = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(logits_TV, predictor_R, target_R, normaliser_R, entropy_R)
        ctx.law = law  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return logprob_R, entropy_R

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, slope_R: Tensor | None, entropy_slope_R: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits_TV, predictor_R, target_R, normaliser_R, entropy_R = ctx.saved_tensors  # type: ignore[attr-defined]
        law: Law = ctx.law  # type: ignore[attr-defined]
        columns = law.columns(logits_TV.shape[1])
        start = 0
        for index_C, target_C in _chunks(logits_TV, predictor_R, target_R):
            within = slice(start, start + len(index_C))
            start += len(index_C)
            logprob_CV = _scaled(logits_TV, index_C, target_C, law).sub_(normaliser_R[within, None])
            local = _Local.of(target_C, logits_TV, law)
            entropy_slope_C = None if entropy_slope_R is None else entropy_slope_R[within]
            gradient_CV = _gradient(
                logprob_CV, local, None if slope_R is None else slope_R[within], entropy_slope_C, entropy_R[within]
            )
            logits_TV[index_C, :columns] = (gradient_CV / law.sampling.temperature).to(logits_TV.dtype)
        unread_T = torch.ones(len(logits_TV), dtype=torch.bool, device=logits_TV.device)
        unread_T[predictor_R] = False
        logits_TV.masked_fill_(unread_T[:, None], 0)
        logits_TV[:, columns:] = 0
        return logits_TV, None, None, None


class _Local(NamedTuple):
    """Targets as columns of this rank, and whether they are here."""

    column_C: Tensor
    here_C: Tensor

    @classmethod
    def of(cls, target_C: Tensor, logits_TV: Tensor, law: Law) -> "_Local":
        width = logits_TV.shape[1]
        column_C = target_C - law.start(width)
        here_C = (column_C >= 0) & (column_C < law.columns(width))
        return cls(torch.where(here_C, column_C, 0), here_C)


def _chunks(logits_TV: Tensor, predictor_R: Tensor, target_R: Tensor) -> list[tuple[Tensor, Tensor]]:
    """At least one, so that every tensor rank makes the same collective calls also where there is no response."""
    size = max(1, CHUNK_NUMBERS // logits_TV.shape[1])
    return list(zip(predictor_R.split(size), target_R.split(size), strict=True))


def _scaled(logits_TV: Tensor, index_C: Tensor, target_C: Tensor, law: Law) -> Tensor:
    """Logits of the law in float32 or finer, -inf where it never draws; a copy to write into."""
    wide = torch.promote_types(logits_TV.dtype, torch.float32)
    scaled_CV = logits_TV.index_select(0, index_C)[:, : law.columns(logits_TV.shape[1])].to(wide)
    if law.sampling.temperature != 1:
        scaled_CV /= law.sampling.temperature
    if not law.sampling.is_whole:
        scaled_CV.masked_fill_(~_support(scaled_CV, target_C, logits_TV.shape[1], law), -torch.inf)
    return scaled_CV


def _support(scaled_CV: Tensor, target_C: Tensor, width: int, law: Law) -> Tensor:
    """Which of this rank's tokens can be drawn; top-p needs the whole vocabulary, one chunk of it at a time."""
    padded_CV = torch.nn.functional.pad(scaled_CV, (0, width - scaled_CV.shape[1]), value=-torch.inf)
    shares = [torch.empty_like(padded_CV) for _ in range(law.group.size())]
    dist.all_gather(shares, padded_CV.contiguous(), group=law.group)
    whole_CV = torch.cat(shares, 1)[:, : law.vocabulary]
    cut = law.sampling
    drawn = Sampling(top_p=cut.top_p, top_k=cut.top_k, min_p=cut.min_p)
    possible_CV = sampling_logprobs(whole_CV, drawn) > -torch.inf
    possible_CV.scatter_(1, target_C[:, None], True)
    start = law.start(width)
    return possible_CV[:, start : start + scaled_CV.shape[1]]


def _statistics(scaled_CV: Tensor, local: _Local, law: Law) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the target, entropy, and the logarithm of the normaliser."""
    alone = law.group.size() == 1
    largest_C = scaled_CV.amax(1) if scaled_CV.shape[1] else scaled_CV.new_full((len(scaled_CV),), -torch.inf)
    if not alone:
        dist.all_reduce(largest_C, dist.ReduceOp.MAX, group=law.group)
    target_C = _pick(scaled_CV, local).sub_(largest_C).masked_fill_(~local.here_C, 0.0)
    scaled_CV.sub_(largest_C[:, None])
    mass_CV = scaled_CV.exp()
    if not law.sampling.is_whole:
        scaled_CV.masked_fill_(mass_CV == 0, 0.0)
    sums_3C = torch.stack([mass_CV.sum(1), torch.linalg.vecdot(mass_CV, scaled_CV), target_C])
    if not alone:
        dist.all_reduce(sums_3C, group=law.group)
    log_mass_C = sums_3C[0].log()
    return sums_3C[2] - log_mass_C, log_mass_C - sums_3C[1] / sums_3C[0], largest_C + log_mass_C


def _pick(scaled_CV: Tensor, local: _Local) -> Tensor:
    if not scaled_CV.shape[1]:
        return scaled_CV.new_zeros(len(scaled_CV))
    return scaled_CV.gather(1, local.column_C[:, None]).squeeze(1)


def _gradient(
    logprob_CV: Tensor, local: _Local, slope_C: Tensor | None, entropy_slope_C: Tensor | None, entropy_C: Tensor
) -> Tensor:
    """Of log p(target): one at the target minus p. Of the entropy: -p (log p + entropy)."""
    mass_CV = logprob_CV.exp()
    factor_C1 = torch.zeros_like(mass_CV[:, :1]) if slope_C is None else -slope_C[:, None].to(mass_CV.dtype)
    if entropy_slope_C is None:
        gradient_CV = mass_CV.mul_(factor_C1)
    else:
        logprob_CV.masked_fill_(mass_CV == 0, 0.0)
        gradient_CV = mass_CV.mul_(factor_C1 - entropy_slope_C[:, None] * (logprob_CV + entropy_C[:, None]))
    if slope_C is not None and gradient_CV.shape[1]:
        gradient_CV.scatter_add_(1, local.column_C[:, None], (slope_C * local.here_C)[:, None].to(gradient_CV.dtype))
    return gradient_CV
