"""The policy being trained by Megatron-Core. Every rank calls the same methods with the same arguments."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_rl.actor import groups, saving, schedule, vocab_parallel, weights
from megatron_rl.actor.build import Model, build
from megatron_rl.actor.cpu import device
from megatron_rl.actor.guard import tainted_rows
from megatron_rl.actor.learning import Outcome, Step, share
from megatron_rl.actor.microbatch import Limits, cost_of
from megatron_rl.actor.optimizer import Optimizer, Progress, wrapped
from megatron_rl.actor.reference import Reference
from megatron_rl.actor.sequences import Packed, Sequences
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, OLD_LOGPROBS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import NotFinite, Objective, Policy, Update
from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an actor starts from: Origin(folder=Path("models/qwen3"), sampling=Sampling(temperature=0.7))."""

    folder: Path
    """Hugging Face folder of the weights."""
    reference: Path | None = None
    """Hugging Face folder of the reference policy's weights; None takes those the actor starts with."""
    sampling: Sampling = Sampling()
    """The law rollouts are drawn from, under which every log-probability is meant."""


class MegatronActor:
    """One rank of the actor. The ranks have joined and been cut before; several actors may share one cut."""

    def __init__(self, settings: ActorSettings, origin: Origin) -> None:
        if origin.sampling.temperature == 0:
            raise SpecError("sampling.temperature is 0, under which nothing can be learnt; give it a positive value.")
        self.settings, self.origin = settings, origin
        self.model: Model = build(weights.read_config(origin.folder), settings, settings.precision, settings.recompute)
        self.reference = self._reference()
        weights.load(self.model, origin.folder)
        self.chunks = wrapped(self.model.chunks, self.model.config, settings.optimizer)
        self.optimizer = Optimizer.of(self.chunks, settings.optimizer)
        self.law = vocab_parallel.Law(
            origin.sampling,
            self.model.architecture.shape.vocabulary,
            parallel_state.get_tensor_model_parallel_group(),
        )
        self.limits = Limits(
            tokens=settings.update.microbatch_tokens,
            ranks=settings.dp,
            rounds=settings.pp if settings.vpp > 1 else 1,
            token_multiple=self.model.token_multiple,
            cost=cost_of(self.model.architecture),
        )

    def update(self, batch: Batch, objective: Objective) -> Update:
        """Learns from the batch; the steps that met a number that is not finite left every weight untouched."""
        steps = list(self._minibatches(batch))
        old = OLD_LOGPROBS in objective.reads and OLD_LOGPROBS not in batch
        if old and len(steps) > 1:
            batch, old = batch.with_columns({OLD_LOGPROBS: self.score(batch)}), False
        sequences = Sequences(batch, [column for column in objective.reads if not (old and column == OLD_LOGPROBS)])
        tainted_B = tainted_rows(batch, objective.reads)
        outcomes = []
        for rows in steps:
            outcome = self._step(sequences, rows, objective, tainted_B)
            outcomes.append(outcome)
            self._count(outcome, batch)
        return _summary(outcomes, batch)

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        """Log-probability of each response token, training state untouched."""
        sequences = Sequences(batch)
        if policy == "current":
            return self._score(sequences)
        if self.reference is None:
            raise SpecError("The reference policy is asked for, but actor.reference is 'none'; set 'device' or 'host'.")
        with self.reference.inside(self.model):
            return self._score(sequences)

    def save(self, folder: Path) -> None:
        """Writes parameters, moments and progress, readable at any other cut."""
        saving.save(folder, self.model.chunks, self.optimizer.megatron, asdict(self.optimizer.progress))

    def load(self, folder: Path) -> None:
        """Continues from a saved state; the reference policy stays the one the actor was made with."""
        progress = saving.load(folder, self.model.chunks, self.optimizer.megatron)
        self.optimizer.progress = Progress(**progress)  # type: ignore[arg-type]  # what `save` wrote

    def close(self) -> None:
        """Leaves the other ranks, unless another actor of this process already has."""
        if dist.is_initialized():
            groups.leave()

    def _reference(self) -> Reference | None:
        if self.settings.reference == "none":
            return None
        weights.load(self.model, self.origin.reference or self.origin.folder)
        return Reference.of(self.model, offload=self.settings.reference == "host")

    def _minibatches(self, batch: Batch) -> Iterator[Tensor]:
        """The rows of each optimizer step: whole groups where there are groups, rows otherwise."""
        groups_ = batch.group_rows() if GROUP in batch else list(torch.arange(len(batch)).split(1))
        count = self.settings.update.steps
        if count > len(groups_):
            raise SpecError(
                f"actor.update.steps is {count}, but this batch has only {len(groups_)} groups to share out; lower it."
            )
        bounds = [len(groups_) * step // count for step in range(count + 1)]
        for _ in range(self.settings.update.epochs):
            for start, stop in pairwise(bounds):
                yield torch.cat(groups_[start:stop])

    def _step(self, sequences: Sequences, rows: Tensor, objective: Objective, tainted_B: Tensor) -> Outcome:
        if tainted_B[rows].any():
            # Every rank sees the whole batch, so every rank stops here.
            reason = "a reward, advantage or other column of the batch that is not finite"
            return Outcome(metrics={}, reason=reason, offending=rows[tainted_B[rows]])
        step = Step(
            sequences=sequences,
            rows=rows,
            objective=objective,
            counts=sequences.counts(rows),
            limits=self.limits,
            law=self.law,
        )
        return step.take(self.chunks, self.optimizer)

    def _count(self, outcome: Outcome, batch: Batch) -> None:
        progress = self.optimizer.progress
        if outcome.offending is None:
            progress.skipped = 0
            return
        progress.skipped += 1
        if progress.skipped >= self.settings.update.max_skipped:
            raise NotFinite(progress.skipped, outcome.reason, batch.take(outcome.offending))

    def _score(self, sequences: Sequences) -> Ragged:
        values_R = torch.zeros(len(sequences.responses.values), device=device())
        offsets = sequences.responses.offsets

        def finish(logits_TV: Tensor, packed: Packed) -> schedule.Finished:
            scored = vocab_parallel.score(logits_TV, packed.predictor_R, packed.target_R, self.law)
            return schedule.Finished(scored.logprob_R.sum(), (packed.rows, scored.logprob_R))

        for chunk in self.model.chunks:
            chunk.eval()
        _, packed = share(sequences, torch.arange(len(sequences.lengths)), self.limits)
        for rows, logprob_R in schedule.forward(self.model.chunks, packed, finish):
            if parallel_state.get_tensor_model_parallel_rank() == 0:
                for row, part in zip(rows.tolist(), logprob_R.split(_lengths(offsets, rows)), strict=True):
                    values_R[offsets[row] : offsets[row + 1]] = part
        for chunk in self.model.chunks:
            chunk.train()
        # Each token was scored on one rank and is zero on all others.
        dist.all_reduce(values_R)
        return Ragged(values_R.cpu(), offsets)


def _lengths(offsets: Tensor, rows: Tensor) -> list[int]:
    lengths: list[int] = offsets.diff()[rows].tolist()
    return lengths


def _summary(outcomes: list[Outcome], batch: Batch) -> Update:
    """Means over the steps that were taken; tokens are counted."""
    taken = [outcome.metrics for outcome in outcomes if outcome.offending is None]
    metrics = {name: sum(each[name] for each in taken) / len(taken) for name in (taken[0] if taken else ())}
    if taken:
        metrics["tokens"] = sum(each["tokens"] for each in taken)
    offending = [outcome.offending for outcome in outcomes if outcome.offending is not None]
    return Update(
        metrics=metrics,
        steps=len(taken),
        skipped=len(offending),
        offending=batch.take(torch.cat(offending).unique()) if offending else None,
    )
