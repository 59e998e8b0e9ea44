"""How a batch becomes optimizer steps: the rate, the optimizer, the cut into minibatches and micro-batches."""

import math
from dataclasses import dataclass
from typing import Literal

from megatron_rl.spec.schema import SpecError


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Up to the peak in `warmup` steps, then constant, linear or along a cosine down to `floor` × peak at `steps`.

    A function of the optimizer steps taken so far, so it needs no state of its own.
    """

    peak: float = 1e-6
    """The highest rate."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The way down after the warm-up."""

    warmup: int = 0
    """Optimizer steps on the way up."""

    steps: int = 0
    """Optimizer steps, warm-up included, after which the floor is reached; `constant` needs none."""

    floor: float = 0.0
    """The share of the peak that stays."""

    def __post_init__(self) -> None:
        if not (self.peak > 0 and self.warmup >= 0 and 0 <= self.floor <= 1):
            raise SpecError(
                "learning_rate needs peak above 0, warmup of at least 0 and floor between 0 and 1, "
                f"got {self.peak!r}, {self.warmup!r} and {self.floor!r}."
            )
        if self.schedule != "constant" and self.steps <= self.warmup:
            raise SpecError(
                f"learning_rate.schedule {self.schedule!r} needs learning_rate.steps above warmup = {self.warmup}, "
                f"got {self.steps!r}; set it to the optimizer steps of the whole run."
            )

    def at(self, done: int) -> float:
        """The rate of the next step after `done` steps."""
        if done < self.warmup:
            return self.peak * (done + 1) / self.warmup
        if self.schedule == "constant":
            return self.peak
        way = min((done - self.warmup) / (self.steps - self.warmup), 1.0)
        left = 1 - way if self.schedule == "linear" else (1 + math.cos(math.pi * way)) / 2
        return self.peak * (self.floor + (1 - self.floor) * left)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW with clipped gradients."""

    learning_rate: LearningRate = LearningRate()
    """The rate and its schedule."""

    betas: tuple[float, float] = (0.9, 0.999)
    """How long the two moments remember."""

    eps: float = 1e-8
    """Keeps the update finite where gradients vanish."""

    weight_decay: float = 0.01
    """Pull of matrices towards zero; norms and biases are never pulled."""

    clip: float = 1.0
    """Longest gradient, over all parameters together; 0 does not clip."""

    distributed: bool = True
    """Whether data ranks share out the moments and master weights instead of each keeping all."""

    overlap: bool = False
    """Whether gradients are reduced over data ranks while the backward pass still runs; nothing to gain on a CPU."""

    def __post_init__(self) -> None:
        if not (all(0 <= beta < 1 for beta in self.betas) and self.eps > 0 and min(self.weight_decay, self.clip) >= 0):
            raise SpecError(
                "optimizer needs betas in [0, 1), eps above 0, weight_decay and clip of at least 0, "
                f"got {self.betas!r}, {self.eps!r}, {self.weight_decay!r} and {self.clip!r}."
            )


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """From the batch of one update to optimizer steps."""

    steps: int = 1
    """Optimizer steps that share out the batch by whole groups, in the order of their first rollout."""

    epochs: int = 1
    """Times the batch is gone through."""

    microbatch_tokens: int = 16384
    """Most tokens packed into one micro-batch; no prompt with its response may be longer."""

    max_skipped: int = 3
    """The run stops after this many optimizer steps in a row that met a number that is not finite."""

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "microbatch_tokens", "max_skipped"):
            if getattr(self, name) < 1:
                raise SpecError(f"actor.update.{name} is {getattr(self, name)!r}, but must be at least 1.")
