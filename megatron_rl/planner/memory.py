"""Memory of the fullest GPU in either phase, the cache that is left for responses, and the longest that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.activations import Activations, activations
from megatron_rl.planner.buffers import Static, static, weights
from megatron_rl.planner.hardware import GIB
from megatron_rl.planner.job import Choice, Engines, Setup
from megatron_rl.reshard.layout import ModelShape


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Bytes of one rank of the actor: Learning(stage=0, static=Static(...), reference=0, critic=0, ...)."""

    stage: int
    static: Static
    reference: int
    critic: int
    activations: Activations

    @property
    def resident(self) -> int:
        """What stays while engines write."""
        return sum(self.static) + self.reference + self.critic

    @property
    def total(self) -> int:
        return self.resident + self.activations.total


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of the fullest GPU: Footprint(learning=Learning(...), weights=8 * GIB, cache=20 * GIB, token=72, ...)."""

    learning: Learning
    weights: int
    """Of one rank of an engine."""
    cache: int
    """What is left for keys and values; negative where nothing is."""
    token: int
    """Of one token's keys and values on one rank."""
    usable: int
    is_shared: bool
    """Whether engines stand on the actor's GPUs."""
    shared: int
    """What the actor holds of that GPU while engines write."""
    given: int = 0
    """What a run's `memory_share` gives an engine; 0 where it says nothing."""
    whole: int = 0
    """All memory of the GPU."""

    @property
    def cached_tokens(self) -> int:
        return max(0, self.cache) // self.token

    @property
    def engine_share(self) -> float:
        """Of the GPU's usable memory, what an engine may take."""
        return (self.weights + max(0, self.cache)) / self.usable

    def refusal(self, longest: int) -> str:
        """Why it does not fit; empty where it does."""
        learning, gib = self.learning, GIB
        if learning.total > self.usable:
            kept = learning.activations.total / gib
            return (
                f"learning needs {learning.total / gib:.1f} GiB of {self.usable / gib:.1f} on stage {learning.stage}: "
                f"weights {learning.static.parameters / gib:.1f}, gradients {learning.static.gradients / gib:.1f}, "
                f"optimizer {learning.static.optimizer / gib:.1f}, activations {kept:.1f}"
            )
        if self.given > self.whole - self.shared:
            most = int((self.whole - self.shared) / self.whole * 100) / 100
            return (
                f"engines are given {self.given / gib:.1f} GiB beside the actor's {self.shared / gib:.1f}, and a GPU "
                f"has {self.whole / gib:.1f}; set rollout.vllm.memory_share to at most {max(0.0, most)}"
            )
        if self.cached_tokens < longest:
            beside = f" beside the actor's {self.shared / gib:.1f}" if self.is_shared else ""
            return (
                f"an engine needs {self.weights / gib:.1f} GiB of weights and {longest * self.token / gib:.2f} of "
                f"cache for one response of {longest} tokens{beside}, and a GPU has {self.usable / gib:.1f}"
            )
        return ""


def footprint(setup: Setup, choice: Choice, known: Learning | None = None) -> Footprint:
    """The memory of this choice; `known` is its actor's fullest rank where that was found before."""
    shape, engines = setup.architecture.shape, choice.engines
    fullest = known or fullest_of(setup, choice.actor)
    shared = 0
    if choice.placement == "colocated":
        shared = fullest.resident if setup.sleeps else fullest.total
    served, whole = engine_weights(shape, engines), int(setup.cluster.gpu.memory_gib * GIB)
    given = int(engines.share * whole)
    left = setup.cluster.usable - shared
    return Footprint(
        learning=fullest,
        weights=served,
        cache=(min(left, given) if given else left) - served,
        token=cache_bytes(shape, engines),
        usable=setup.cluster.usable,
        is_shared=choice.placement == "colocated",
        shared=shared,
        given=given,
        whole=whole,
    )


def fullest_of(setup: Setup, actor: ActorSettings) -> Learning:
    """The fullest rank: of the first stage, of the first with most layers, or of the last."""
    stages = actor.chunk_layers(setup.architecture.shape.layers)[: actor.pp]
    possible = dict.fromkeys((0, stages.index(max(stages)), actor.pp - 1))
    return max((learning(setup, actor, stage) for stage in possible), key=lambda one: one.total)


def learning(setup: Setup, actor: ActorSettings, stage: int) -> Learning:
    """What a rank of this pipeline stage holds while it learns."""
    own = static(setup.architecture.shape, actor, stage)
    # A critic learns all its weights, whatever the policy learns.
    whole = static(setup.architecture.shape, replace(actor, lora=None), stage)
    kept = activations(setup.architecture, actor, stage, microbatches(setup, actor), setup.kernels)
    return Learning(
        stage=stage,
        static=own,
        reference=own.parameters if actor.reference == "device" and actor.lora is None else 0,
        critic=sum(whole) if setup.job.has_critic else 0,
        activations=kept,
    )


def microbatches(setup: Setup, actor: ActorSettings) -> int:
    """Micro-batches of one optimizer step on each data rank; packing fills them to about nine tenths."""
    tokens = setup.job.tokens / setup.job.optimizer_steps / actor.dp
    count = max(1, -(-int(tokens) // int(actor.update.microbatch_tokens * 0.9)))
    return -(-count // actor.pp) * actor.pp if actor.vpp > 1 else count


def engine_weights(shape: ModelShape, engines: Engines) -> int:
    """Bytes of the weights on one rank of an engine, in 16 bits."""
    return 2 * elements(shape) // engines.tp


@lru_cache(maxsize=64)
def elements(shape: ModelShape) -> int:
    """Parameters of the model."""
    return sum(weight.elements for weight in weights(shape, ActorSettings(), 0))


def cache_bytes(shape: ModelShape, engines: Engines) -> int:
    """Keys and values of one token on one rank; where there are more ranks than heads, some hold the same one."""
    return 2 * 2 * shape.layers * -(-shape.kv_heads // engines.tp) * shape.head_dim


def longest_response(setup: Setup, choice: Choice) -> int:
    """The longest response that this choice has room for in both phases, within the model's context; 0 if none."""
    low, high = 0, max(0, setup.architecture.context - setup.job.prompt_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(setup, choice, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _fits(setup: Setup, choice: Choice, response: int) -> bool:
    """With micro-batches that hold one such response and its prompt."""
    longest = setup.job.prompt_tokens + response - 1
    update = replace(choice.actor.update, microbatch_tokens=max(longest, choice.actor.tp))
    changed = replace(choice, actor=replace(choice.actor, update=update))
    return not footprint(setup, changed).refusal(longest)
