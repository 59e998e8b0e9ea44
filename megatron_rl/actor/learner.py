"""A Megatron-Core model that learns from batches: what a policy and a critic have in common.

Every rank calls the same methods with the same arguments.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rl.actor import saving, schedule
from megatron_rl.actor.build import Model
from megatron_rl.actor.context import Context, whole
from megatron_rl.actor.cpu import device
from megatron_rl.actor.groups import is_first_of_its_kind
from megatron_rl.actor.guard import tainted_rows
from megatron_rl.actor.learning import Outcome, Step, share
from megatron_rl.actor.microbatch import Limits, cost_of
from megatron_rl.actor.optimizer import Optimizer, Progress, wrapped
from megatron_rl.actor.sequences import Packed, Sequences
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.actor.vocab_parallel import Scored
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import GROUP, OLD_LOGPROBS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ports import NotFinite, Objective, Update
from megatron_rl.spec.schema import SpecError

Read = Callable[[Tensor, Packed], Scored]
"""What the model's output says of each response token predicted here: a log-probability, or a value."""


class Learner:
    """One rank's part of a model whose weights are loaded, with its optimizer."""

    def __init__(self, settings: ActorSettings, model: Model, read: Read) -> None:
        self.settings, self.model, self.read = settings, model, read
        self.chunks = wrapped(model.chunks, model.config, settings.optimizer)
        self.optimizer = Optimizer.of(self.chunks, settings.optimizer)
        self.context = Context.here()
        self.limits = Limits(
            tokens=settings.update.microbatch_tokens,
            ranks=settings.dp,
            rounds=settings.pp if settings.vpp > 1 else 1,
            token_multiple=model.token_multiple,
            cost=cost_of(model.architecture),
        )

    def learn(self, batch: Batch, objective: Objective) -> Update:
        """Steps over the batch; those that met a number that is not finite left every weight untouched."""
        steps = list(self._minibatches(batch))
        old = OLD_LOGPROBS in objective.reads and OLD_LOGPROBS not in batch
        if old and len(steps) > 1:
            batch, old = batch.with_columns({OLD_LOGPROBS: self.predict(batch)}), False
        reads = [column for column in objective.reads if not (old and column == OLD_LOGPROBS)]
        sequences = Sequences(batch, reads, self.context)
        tainted_B = tainted_rows(batch, objective.reads)
        outcomes = []
        for rows in steps:
            outcome = self._step(sequences, rows, objective, tainted_B)
            outcomes.append(outcome)
            self._count(outcome, batch)
        return _summary(outcomes, batch)

    def predict(self, batch: Batch) -> Ragged:
        """What the model says of each response token, training state untouched."""
        sequences = Sequences(batch, context=self.context)
        predicted_R = torch.zeros(len(sequences.responses.values), device=device())
        offsets = sequences.responses.offsets

        def finish(output_TV: Tensor, packed: Packed) -> schedule.Finished:
            said_S = self.read(output_TV, packed).logprob_R
            said_R = whole(said_S, packed.here_S, len(packed.row_R))
            return schedule.Finished(said_R.sum(), (packed.rows, said_R))

        for chunk in self.model.chunks:
            chunk.eval()
        _, packed = share(sequences, torch.arange(len(sequences.lengths)), self.limits)
        for rows, said_R in schedule.forward(self.model.chunks, packed, finish):
            if is_first_of_its_kind():
                for row, part in zip(rows.tolist(), said_R.split(_lengths(offsets, rows)), strict=True):
                    predicted_R[offsets[row] : offsets[row + 1]] = part
        for chunk in self.model.chunks:
            chunk.train()
        # Each token was looked at on one rank and is zero on all others.
        dist.all_reduce(predicted_R)
        return Ragged(predicted_R.cpu(), offsets)

    def set_aside(self, folder: Path, writers: saving.Writers) -> saving.Write:
        """Copies parameters, moments and progress, for whoever writes them, readable at any other cut."""
        progress = asdict(self.optimizer.progress)
        return saving.set_aside(folder, self.model.chunks, self.optimizer.megatron, progress, writers)

    def load(self, folder: Path) -> None:
        """Continues from a saved state."""
        progress = saving.load(folder, self.model.chunks, self.optimizer.megatron)
        self.optimizer.progress = Progress(**progress)  # type: ignore[arg-type]  # what `save` wrote

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
            read=self.read,
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


def _lengths(offsets: Tensor, rows: Tensor) -> list[int]:
    lengths: list[int] = offsets.diff()[rows].tolist()
    return lengths


def _summary(outcomes: list[Outcome], batch: Batch) -> Update:
    """Means over the steps that were taken; tokens are counted."""
    whole = [outcome for outcome in outcomes if outcome.offending is None]
    taken = [outcome for outcome in whole if not outcome.rested]
    told = [outcome.metrics for outcome in taken or whole]
    metrics = {name: sum(each[name] for each in told) / len(told) for name in (told[0] if told else ())}
    if told:
        metrics["tokens"] = sum(each["tokens"] for each in told)
    offending = [outcome.offending for outcome in outcomes if outcome.offending is not None]
    return Update(
        metrics=metrics,
        steps=len(taken),
        skipped=len(offending),
        offending=batch.take(torch.cat(offending).unique()) if offending else None,
    )
