"""What is to be planned: the rollouts of a step and what is done with them, and the choices that a plan makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from megatron_rl.actor.architecture import Architecture
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.activations import Kernels
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.lengths import Lengths

Placement = Literal["colocated", "split"]


class Screen(NamedTuple):
    """SPEED-RL: Screen(screened=64, first=4, more=20) writes 4 rollouts of 64 prompts and 20 of those accepted."""

    screened: int
    first: int
    more: int


class Judging(NamedTuple):
    """Seconds to grade a rollout, and how many are graded at once."""

    seconds: float = 0.02
    processes: int = 32


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of a run: Job(prompts=128, samples=8, lengths=Lengths(mean=1200, most=8192))."""

    prompts: int
    samples: int
    lengths: Lengths
    prompt_tokens: int = 256
    longest_prompt: int = 0
    """Most tokens of a prompt; where that is less than their mean, as many as that."""
    optimizer_steps: int = 1
    epochs: int = 1
    scores: int = 1
    """Passes over all rollouts for log-probabilities: of the policy before the update, of a reference."""
    has_critic: bool = False
    judging: Judging = Judging()
    screen: Screen | None = None
    drafted: float = 0.0
    """The share of a response's tokens that SPEC-RL takes over from a draft."""
    ahead: int = 0
    """Steps by which rollouts may be older than the policy that learns from them; above 0 collecting never waits."""

    @property
    def rows(self) -> int:
        """Rollouts that an update learns from."""
        return self.prompts * (self.screen.first + self.screen.more if self.screen else self.samples)

    @property
    def written(self) -> int:
        """Rollouts that the engines write for it."""
        if self.screen is None:
            return self.rows
        return self.screen.screened * self.screen.first + self.prompts * self.screen.more

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response, the last of which is never computed."""
        return max(self.prompt_tokens, self.longest_prompt) + self.lengths.most - 1

    @property
    def tokens(self) -> float:
        """Tokens that an update computes."""
        return self.rows * (self.prompt_tokens + self.lengths.mean - 1)

    @property
    def squares(self) -> float:
        """The sum of squared sequence lengths."""
        prompt = self.prompt_tokens
        return self.rows * (prompt**2 + 2 * prompt * self.lengths.mean + self.lengths.square)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that is given: Setup(architecture=describe(config), cluster=Cluster(nodes=4), job=Job(...))."""

    architecture: Architecture
    cluster: Cluster
    job: Job
    actor: ActorSettings = field(default_factory=ActorSettings)
    """What is kept of the actor: precision, optimizer, reference. How it is cut is what a plan chooses."""
    kernels: Kernels = "transformer_engine"
    sleeps: bool = False
    """Whether engines on the actor's GPUs give back their memory while it learns."""


class Engines(NamedTuple):
    """`replicas` rollout groups of `tp` GPUs, each writing at most `rows` responses at once."""

    tp: int
    replicas: int
    rows: int = 256
    share: float = 0.0
    """The share of a GPU that a run gives them; 0 leaves them what there is."""

    @property
    def gpus(self) -> int:
        return self.tp * self.replicas


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to run it: Choice(actor=ActorSettings(tp=2, dp=8), engines=Engines(2, 8), placement="colocated")."""

    actor: ActorSettings
    engines: Engines
    placement: Placement = "colocated"
