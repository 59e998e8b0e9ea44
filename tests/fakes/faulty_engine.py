"""An engine that writes what another writes and then does something to it that no engine may."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import FINISH, SAMPLER_LOGPROBS, SEED, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import RolloutEngine

Fault = Callable[[Batch], Batch]


def loses(row: int) -> Fault:
    """One rollout does not come back, and those behind it move up."""
    return lambda rollouts: rollouts.take(torch.tensor([at for at in range(len(rollouts)) if at != row]))


def doubles(row: int) -> Fault:
    """One comes back twice."""
    return lambda rollouts: rollouts.take(torch.tensor([*range(row + 1), *range(row, len(rollouts))]))


def replaces(row: int, by: int) -> Fault:
    """One comes back in another's place, so that the number is right."""
    return lambda rollouts: rollouts.take(torch.tensor([by if at == row else at for at in range(len(rollouts))]))


def swaps(row: int, other: int) -> Fault:
    turned = {row: other, other: row}
    return lambda rollouts: rollouts.take(torch.tensor([turned.get(at, at) for at in range(len(rollouts))]))


def says(row: int, logprob: float) -> Fault:
    """The last token of one has this log-probability."""

    def spoil(rollouts: Batch) -> Batch:
        logprobs = rollouts.ragged(SAMPLER_LOGPROBS)
        values_T = logprobs.values.clone()
        values_T[int(logprobs.offsets[row + 1]) - 1] = logprob
        return rollouts.with_columns(sampler_logprobs=Ragged(values_T, logprobs.offsets))

    return spoil


def writes_on(row: int, tokens: int) -> Fault:
    """One has so many tokens more than log-probabilities."""

    def spoil(rollouts: Batch) -> Batch:
        rows = [each.tolist() for each in rollouts.ragged(TOKENS).rows()]
        rows[row] += [0] * tokens
        return rollouts.with_columns(tokens=Ragged.of(rows, dtype=torch.int32))

    return spoil


def ends(row: int, finish: str) -> Fault:
    """One ends for a reason that there is not."""

    def spoil(rollouts: Batch) -> Batch:
        finishes = rollouts.strings(FINISH)
        return rollouts.with_columns(finish=[finish if at == row else known for at, known in enumerate(finishes)])

    return spoil


def dies(rollouts: Batch) -> Batch:
    raise ConnectionResetError("the engine's process ended with signal 9")


def hangs(rollouts: Batch) -> Batch:
    """What an engine with a deadline says once that is over."""
    raise TimeoutError("the engine said nothing for 300 s")


class FaultyEngine:
    """Commits the fault of each call in `faults`; the calls count from 0."""

    def __init__(self, engine: RolloutEngine, faults: Mapping[int, Fault]) -> None:
        self.engine, self.faults = engine, faults
        self.sampling, self.max_tokens = engine.sampling, engine.max_tokens
        self.calls = 0

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        rollouts = self.engine.generate(batch, sampling)
        fault = self.faults.get(self.calls)
        self.calls += 1
        return fault(rollouts) if fault else rollouts

    def score(self, batch: Batch) -> Ragged:
        return self.engine.score(batch)

    def close(self) -> None:
        self.engine.close()


class LosesSome(FaultyEngine):
    """Does not give back this share of the rollouts, by their seeds: the same ones whenever they are asked for."""

    def __init__(self, engine: RolloutEngine, share: float) -> None:
        super().__init__(engine, {})
        self.share = share

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        rollouts = super().generate(batch, sampling)
        return rollouts.where(rollouts.numbers(SEED) % 1000 >= 1000 * self.share)


FAULTS: Mapping[str, tuple[Fault, tuple[int, ...], str]] = {
    "loses one": (loses(2), (2,), "was not given back"),
    "gives one twice": (doubles(1), (1,), "was given back 2 times"),
    "gives one for another": (replaces(3, by=0), (0, 3), "was"),
    "changes the order": (swaps(0, 4), (0, 4), "was given back out of order"),
    "gives NaN": (says(5, math.nan), (5,), "log-probability nan"),
    "gives minus infinity": (says(5, -math.inf), (5,), "log-probability -inf"),
    "gives more than certainty": (says(0, 0.5), (0,), "log-probability 0.5"),
    "writes without log-probabilities": (writes_on(1, 3), (1,), "of sampler_logprobs"),
    "invents an end": (ends(4, "tired"), (4,), "finish 'tired'"),
}
"""By name: the fault, the rows of a wave that it spoils, and what is said of them."""
