"""One optimizer step: forward and backward over packed micro-batches, then all or nothing.

R response tokens of a micro-batch, B rows of the step's batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from megatron_rl.actor import schedule, vocab_parallel
from megatron_rl.actor.context import whole
from megatron_rl.actor.cpu import device
from megatron_rl.actor.groups import is_first_of_its_kind
from megatron_rl.actor.microbatch import Limits, Microbatches, plan
from megatron_rl.actor.optimizer import Optimizer
from megatron_rl.actor.sequences import Packed, Sequences
from megatron_rl.batch.columns import OLD_LOGPROBS
from megatron_rl.ops.segments import row_sum
from megatron_rl.ports import Counts, Objective, Priced, Tokens


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one optimizer step did: the same on every rank."""

    metrics: dict[str, float]
    reason: str = ""
    """Why the step was skipped; empty where it was taken."""
    offending: Tensor | None = None
    """Rows of the batch that made it be skipped."""
    rested: bool = False
    """Whether there was no token to learn from, so that nothing moved."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The rows of one optimizer step and how they are priced."""

    sequences: Sequences
    rows: Tensor
    objective: Objective
    counts: Counts
    limits: Limits
    read: Callable[[Tensor, Packed], vocab_parallel.Scored]
    """What the model's output says of each response token predicted here."""

    def take(self, chunks: Sequence[DistributedDataParallel], optimizer: Optimizer) -> Outcome:
        """Moves the weights, or leaves weights, moments and step count as they were and says why."""
        if not self.counts.tokens:
            # A policy that rests has its tokens masked; moments and weight decay must not move it either.
            priced = dict.fromkeys(priced_nothing(self.objective).metrics, 0.0)
            return Outcome(metrics=priced | {"loss": 0.0, "grad_norm": 0.0, "tokens": 0.0}, rested=True)
        optimizer.megatron.zero_grad()
        planned, packed = share(self.sequences, self.rows, self.limits)
        real = sum(self.sequences.lengths[row] for row in self.sequences.spoken(self.rows))
        shares = schedule.forward_backward(chunks, packed, self.finish)
        report = self.reduced(shares)
        metrics = report.metrics(self) | {
            "lr": optimizer.learning_rate,
            "tokens": float(self.counts.tokens),
            "packing": planned.processed / max(real, 1),
            "imbalance": planned.imbalance,
        }
        if report.tainted.any():
            return Outcome(metrics=metrics, reason=report.reason, offending=report.tainted.nonzero().flatten())
        norm = optimizer.gradient_norm()
        metrics["grad_norm"] = norm
        if not math.isfinite(norm):
            return Outcome(metrics=metrics, reason="a gradient that is not finite", offending=self.rows)
        optimizer.step(norm)
        return Outcome(metrics=metrics)

    def finish(self, output_TV: Tensor, packed: Packed) -> schedule.Finished:
        """The share of the loss of one micro-batch, on the last stage."""
        scored = _whole(self.read(output_TV, packed), packed)
        entropy_R = scored.entropy_R if self.objective.needs_entropy else scored.entropy_R.detach()
        columns = packed.columns
        if OLD_LOGPROBS in self.objective.reads and OLD_LOGPROBS.name not in columns:
            # The only step on this batch: the weights are still those of before the update.
            columns = columns | {OLD_LOGPROBS.name: scored.logprob_R.detach()}
        tokens = Tokens(
            logprobs_T=scored.logprob_R,
            entropy_T=entropy_R,
            mask_T=packed.mask_R,
            row_T=packed.row_R,
            offsets=packed.offsets,
            columns=columns,
        )
        priced = self.objective.price(tokens, self.counts)
        return schedule.Finished(priced.loss, _Share.of(tokens, priced, packed.rows))

    def reduced(self, shares: Sequence["_Share"]) -> "_Report":
        """The shares of all micro-batches on all data ranks, summed and known to every rank."""
        names = sorted(priced_nothing(self.objective).metrics)
        report_N = torch.zeros(2 + len(names) + 2 * len(self.sequences.lengths), dtype=torch.float64, device=device())
        if is_first_of_its_kind():
            for part in shares:
                report_N[: 2 + len(names)] += part.numbers(names)
                flags_2B = report_N[2 + len(names) :].view(2, -1)
                flags_2B[:, part.rows.to(report_N.device)] += part.tainted_2B.to(report_N.dtype)
        dist.all_reduce(report_N)
        return _Report(names, report_N.cpu())


def share(sequences: Sequences, rows: Tensor, limits: Limits) -> tuple[Microbatches, list[Packed]]:
    """The plan for these rows, and this data rank's part of it on the device."""
    units = sequences.units(sequences.spoken(rows))
    planned = plan([sequences.room(unit) for unit in units], limits)
    mine = planned.rows[parallel_state.get_data_parallel_rank()]
    return planned, [
        sequences.pack([row for index in bin_ for row in units[index]], planned.padding(bin_), device())
        for bin_ in mine
    ]


def _whole(scored: vocab_parallel.Scored, packed: Packed) -> vocab_parallel.Scored:
    """An objective may compare all tokens of a row or group, so each context rank prices all of the micro-batch."""
    return vocab_parallel.Scored(*(whole(value_S, packed.here_S, len(packed.row_R)) for value_S in scored))


def priced_nothing(objective: Objective) -> Priced:
    """The price of no tokens at all: what tells a rank without logits the names of an objective's metrics."""
    empty, offsets = torch.zeros(0), torch.zeros(1, dtype=torch.int64)
    columns = {column.name: empty if column.is_ragged else torch.zeros(0) for column in objective.reads}
    tokens = Tokens(
        logprobs_T=empty,
        entropy_T=empty,
        mask_T=torch.zeros(0, dtype=torch.uint8),
        row_T=offsets[:0],
        offsets=offsets,
        columns=columns,
    )
    return objective.price(tokens, Counts(tokens=1, rows=1, groups=1))


@dataclass(frozen=True, kw_only=True)
class _Share:
    """One micro-batch's part of the report. The two flags of a row: a log-probability, a loss that is not finite."""

    loss: Tensor
    entropy: Tensor
    metrics: dict[str, Tensor]
    rows: Tensor
    tainted_2B: Tensor

    @classmethod
    def of(cls, tokens: Tokens, priced: Priced, rows: Tensor) -> "_Share":
        live_T = tokens.mask_T.bool()
        broken_T = live_T & ~torch.isfinite(tokens.logprobs_T.detach())
        loss = priced.loss.detach()
        unpriced_B = (~torch.isfinite(loss)).long().expand(len(rows))
        entropy_T = torch.where(live_T, tokens.entropy_T.detach(), 0.0)  # type: ignore[union-attr]  # always given
        return cls(
            loss=loss,
            entropy=entropy_T.sum(),
            metrics={name: value.detach() for name, value in priced.metrics.items()},
            rows=rows,
            tainted_2B=torch.stack([row_sum(broken_T.long(), tokens.offsets), unpriced_B]),
        )

    def numbers(self, names: Sequence[str]) -> Tensor:
        return torch.stack([self.loss, self.entropy, *(self.metrics[name] for name in names)]).double()


@dataclass(frozen=True)
class _Report:
    names: Sequence[str]
    report_N: Tensor

    @property
    def flags_2B(self) -> Tensor:
        return self.report_N[2 + len(self.names) :].view(2, -1) > 0

    @property
    def tainted(self) -> Tensor:
        """Rows whose log-probabilities are not finite; where these are, the rows whose loss is not."""
        broken_B, unpriced_B = self.flags_2B
        return broken_B if broken_B.any() else unpriced_B

    @property
    def reason(self) -> str:
        return f"a {'log-probability' if self.flags_2B[0].any() else 'loss'} that is not finite"

    def metrics(self, step: Step) -> dict[str, float]:
        loss, entropy, *rest = self.report_N[: 2 + len(self.names)].tolist()
        return {
            "loss": loss,
            "entropy": entropy / max(step.counts.tokens, 1),
            **dict(zip(self.names, rest, strict=True)),
        }
