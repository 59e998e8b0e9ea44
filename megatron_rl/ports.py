"""The ports: what the loop and the ideas know of machines, and what the loop knows of ideas.

Four seams for ideas: a `Sampler` chooses prompts, a `Stage` derives columns, an `Objective` prices tokens, a `Reward`
scores answers. Ports of machines: `RolloutEngine`, `Actor`, `Critic`, `WeightSync`, `Judge`. `Context` is all they see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from megatron_rl.answers import Question as Question
from megatron_rl.answers import Score as Score
from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import Column
from megatron_rl.batch.memory import Memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.ops.logprobs import Sampling

Policy = Literal["current", "reference"]


class Prompts(Protocol):
    """The data set: rows with PROMPT_ID, SOURCE, ANSWER, EXTRA, PROMPT_TEXT and PROMPT_TOKENS."""

    ids: Sequence[str]

    def take(self, index: Sequence[int]) -> Batch: ...


@runtime_checkable
class RolloutEngine(Protocol):
    """Writes rollouts. Requested = returned, row for row: a rollout that failed comes back with STATUS 'failed'."""

    @property
    def sampling(self) -> Sampling:
        """The law tokens are drawn from."""

    @property
    def max_tokens(self) -> int:
        """Response tokens a request may have where it brings no BUDGET."""

    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Batch:
        """Writes TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION and RESPONSE_TEXT.

        Honours SEED, PREFIX and BUDGET; draws from another law than its own where one is given.
        """

    def score(self, batch: Batch) -> Ragged:
        """Log-probability of each response token under the sampling law of the loaded weights."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one update did. `skipped` optimizer steps left every weight untouched because a number was not finite."""

    metrics: Mapping[str, float]
    steps: int
    skipped: int = 0
    offending: Batch | None = None
    """The rows of the skipped steps."""


class NotFinite(RuntimeError):
    """The actor gives up: too many optimizer steps in a row were skipped. `offending` holds the rows of the last."""

    def __init__(self, steps: int, reason: str, offending: Batch) -> None:
        super().__init__(steps, reason, offending)
        self.steps, self.reason, self.offending = steps, reason, offending

    def __str__(self) -> str:
        return (
            f"{self.steps} optimizer steps in a row were skipped, the last because of {self.reason} in "
            f"{len(self.offending)} rollouts; look at the rows written out, or raise actor.update.max_skipped."
        )


@runtime_checkable
class Actor(Protocol):
    """The policy being trained."""

    def update(self, batch: Batch, objective: Objective) -> Update:
        """Learns from the batch; NotFinite when numbers that are not finite keep coming."""

    def score(self, batch: Batch, policy: Policy = "current") -> Ragged:
        """Log-probability of each response token, training state untouched."""

    def save(self, folder: Path) -> Future[None]:
        """Takes aside what is to be saved, and writes it beside what comes next; OSError where a disk is full."""

    def load(self, folder: Path) -> None: ...
    def close(self) -> None: ...


class Critic(Protocol):
    """Says VALUES beside the policy, and learns RETURNS. The actor saves and loads it."""

    def value(self, batch: Batch) -> Ragged: ...
    def update(self, batch: Batch) -> Update: ...


class WeightSync(Protocol):
    """Moves the actor's weights into the engine."""

    def publish(self, version: int) -> int:
        """Serves the actor's weights under this version number; returns it."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the last publish took."""


class Judge(Protocol):
    """Runs a reward over rollouts, killably."""

    def judge(self, batch: Batch) -> Batch:
        """Writes REWARD, CORRECT, VERDICT and EXTRACTED."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a sampler or a stage may ask of the world."""

    step: int
    version: int
    seed: int
    machines: Mapping[str, object] = field(default_factory=dict)

    def rng(self, name: str, count: int = 0) -> np.random.Generator:
        """Fresh random numbers of this step. `count` tells repeated draws of one step apart and comes from memory."""
        return np.random.Generator(np.random.Philox(key=self.key(name, count)))

    def lasting_rng(self, name: str, count: int) -> np.random.Generator:
        """Random numbers that do not depend on the step: the order of an epoch, the seeds of a wave."""
        return np.random.Generator(np.random.Philox(key=_bits_of(f"{self.seed}//{name}/{count}")))

    def key(self, name: str, count: int = 0) -> int:
        """128 bits that only this seed, step, name and count share; the key of counter-based noise."""
        return _bits_of(f"{self.seed}/{self.step}/{name}/{count}")

    @property
    def engine(self) -> RolloutEngine:
        return self._machine("engine")  # type: ignore[return-value]  # assembled by kind

    @property
    def actor(self) -> Actor:
        return self._machine("actor")  # type: ignore[return-value]

    @property
    def critic(self) -> Critic:
        return self._machine("critic")  # type: ignore[return-value]

    @property
    def judge(self) -> Judge:
        return self._machine("judge")  # type: ignore[return-value]

    @property
    def prompts(self) -> Prompts:
        return self._machine("prompts")  # type: ignore[return-value]

    def _machine(self, name: str) -> object:
        if name not in self.machines:
            raise LookupError(f"this step has no {name}; a stage says so in `uses`, it has {sorted(self.machines)}")
        return self.machines[name]


def _bits_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


class Sampler(Protocol):
    """Chooses prompts and how many rollouts each gets."""

    slot: ClassVar[str]
    writes: tuple[Column, ...]
    prompts: int  # whole groups that one update learns from

    def draw(self, memory: Memory, context: Context) -> tuple[Batch, Memory]:
        """The next wave of requests, with the columns in `writes`."""

    def observe(self, batch: Batch, memory: Memory, context: Context) -> Memory:
        """Memory after the judged wave has been seen."""


class Stage(Protocol):
    """Derives columns from columns. Memory in, memory out; nothing else is remembered."""

    reads: tuple[Column, ...]
    writes: tuple[Column, ...]

    def __call__(self, batch: Batch, memory: Memory, context: Context) -> tuple[Batch, Memory]: ...


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Denominators of one optimizer step, counted over its whole batch: live tokens, rows with a live token, groups."""

    tokens: int
    rows: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One micro-batch as an objective sees it: T response tokens of B whole rollouts, flat.

    `logprobs_T` carries the gradient; `entropy_T` too, where the objective asks for it. `row_T` numbers the rollout of
    each token. Token columns are T long and row columns B long, on the device, under the names in `reads`.
    """

    logprobs_T: Tensor
    entropy_T: Tensor | None
    mask_T: Tensor
    row_T: Tensor
    offsets: Tensor
    columns: Mapping[str, Tensor]

    def __getitem__(self, column: Column) -> Tensor:
        return self.columns[column.name]


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A micro-batch's share of the loss. Shares of any split add up to the loss of the whole; metrics likewise."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """Prices tokens: sums over denominators that were counted on the whole optimizer step."""

    @property
    def reads(self) -> tuple[Column, ...]: ...
    @property
    def needs_entropy(self) -> bool: ...

    def price(self, tokens: Tokens, counts: Counts) -> Priced: ...


class Reward(Protocol):
    """Scores one answer. Runs in a process that may be killed at any time."""

    def __call__(self, question: Question) -> Score: ...


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What a finished step says of itself; `step` counts finished steps, so the first record has step 1."""

    step: int
    seconds: Mapping[str, float]
    """Wall-clock seconds by phase: collect, learn, update, publish, evaluate; and save, of the step before."""
    metrics: Mapping[str, float]
    rollouts: int
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of these, or beside them, as rollouts that are written ahead: collect/sampler, learn/advantage, save/landed."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out results after `step` steps by source and measure: {"sums/pass@1": .94, "sums/pass@1/low": .92, …}."""

    step: int
    metrics: Mapping[str, float]


class Evaluator(Protocol):
    """Measures the policy on held-out prompts."""

    def evaluate(self, step: int) -> Evaluation: ...


class Telemetry(Protocol):
    """Shows and keeps what happens. Never changes it."""

    def start(self, step: int, steps: int) -> None:
        """The run begins, or resumes, after `step` finished steps of `steps`."""

    def wave(self, done: int, total: int, tokens: int) -> None:
        """Progress of the rollouts asked for: requests done of total, tokens written so far."""

    def step(self, record: StepRecord, batch: Batch) -> None: ...

    def measuring(self) -> None:
        """From here to `evaluation`, waves are a measurement's and no step's."""

    def evaluation(self, evaluation: Evaluation) -> None: ...

    def close(self, reason: str) -> None:
        """`reason` is 'finished' or one sentence on what ended the run."""
