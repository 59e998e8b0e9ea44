"""Seconds that the actor takes: to learn from the rollouts of a step, and to score them."""

from __future__ import annotations

from typing import NamedTuple

from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.buffers import static
from megatron_rl.planner.job import Setup
from megatron_rl.planner.memory import microbatches
from megatron_rl.planner.work import forward

IMBALANCE = 1.03
"""How far the slowest data rank lies above the mean."""


class Update(NamedTuple):
    """Seconds of all optimizer steps of an update, apart by what they are spent on; `total` is their sum."""

    compute: float
    bubble: float
    """Waiting for the first and last micro-batches of a pipeline."""
    tensor: float
    """Sums over tensor ranks, keys and values between context ranks, and tokens on their way to experts."""
    data: float
    """Sums over data ranks, weights gathered again, and the optimizer itself."""

    @property
    def total(self) -> float:
        return sum(self)


def update(setup: Setup, actor: ActorSettings) -> Update:
    """All epochs and optimizer steps over the rollouts of a step."""
    recomputed = actor.recompute.granularity == "full"
    one = _passes(setup, actor, forwards=4 if recomputed else 3, exchanges=3 if recomputed else 2)
    epochs, steps = setup.job.epochs, setup.job.epochs * setup.job.optimizer_steps
    factor = epochs * (2 if setup.job.has_critic else 1)
    return Update(one.compute * factor, one.bubble * factor, one.tensor * factor, steps * _data(setup, actor))


def score(setup: Setup, actor: ActorSettings) -> float:
    """One pass over the rollouts of a step without gradients."""
    return _passes(setup, actor, forwards=1, exchanges=1).total


def _passes(setup: Setup, actor: ActorSettings, forwards: int, exchanges: int) -> Update:
    """Forward passes' worth of work over all rollouts once, with the exchanges between tensor ranks of so many."""
    job, cluster, shape = setup.job, setup.cluster, setup.architecture.shape
    gpu, reached = cluster.gpu, cluster.reached
    peak = gpu.fp8 if actor.precision.compute == "fp8" else gpu.bf16
    # FP8 speeds up matrices alone, and pays for casts.
    share = reached.mixture if setup.architecture.routing else reached.matrices
    speed = share * (gpu.bf16 + (peak - gpu.bf16) * 0.5)
    work = forwards * forward(setup.architecture, job.tokens, job.squares) / (actor.dp * actor.cp) * IMBALANCE
    count = microbatches(setup, actor) * job.optimizer_steps
    launched = count * forwards * shape.layers / actor.pp * reached.layer_s
    compute = max(work / (actor.tp * actor.pp * speed), launched)
    # Two gatherings and two scatterings of the stream in each layer, each of all but a rank's own part.
    tokens = job.tokens / (actor.dp * actor.cp) * IMBALANCE
    stream = tokens * shape.hidden * 2 * shape.layers / actor.pp
    tensor = exchanges * 4 * stream * (actor.tp - 1) / actor.tp / cluster.wire(actor.tp)
    tensor += exchanges * _dealt(setup, actor, stream / actor.tp)
    tensor += forwards * _met(setup, actor, tokens)
    waited = (actor.pp - 1) / (microbatches(setup, actor) * actor.vpp)
    return Update(compute, (compute + tensor) * waited, tensor, 0.0)


def _met(setup: Setup, actor: ActorSettings, tokens: float) -> float:
    """To show each context rank the keys and values of the others; a backward pass brings their gradients back too."""
    shape = setup.architecture.shape
    width = max(shape.kv_heads * shape.head_dim // actor.tp, shape.head_dim)
    sent = (actor.cp - 1) * tokens * 2 * width * 2 * shape.layers / actor.pp
    return sent / setup.cluster.wire(actor.tp * actor.cp)


def _dealt(setup: Setup, actor: ActorSettings, stream: float) -> float:
    """To send each token to its experts and back."""
    routing, shape = setup.architecture.routing, setup.architecture.shape
    if routing is None or actor.ep == 1:
        return 0.0
    sparse = sum(shape.is_sparse(layer) for layer in range(shape.layers)) / shape.layers
    sent = 2 * stream * sparse * routing.chosen * (actor.ep - 1) / actor.ep
    return sent / setup.cluster.wire(actor.ep)


def _data(setup: Setup, actor: ActorSettings) -> float:
    """One optimizer step: float32 gradients summed, weights moved in memory, gathered again."""
    cluster = setup.cluster
    own = static(setup.architecture.shape, actor, 0)
    ranks = actor.dp * actor.cp
    # Neighbours of a data group are `tp` GPUs apart.
    wire = cluster.wire(actor.tp * ranks)
    crossing = (own.gradients + own.parameters) * (ranks - 1) / ranks / wire
    moved = 2 * own.optimizer + own.gradients / ranks
    return crossing + moved / (cluster.gpu.memory_bandwidth * cluster.reached.reading)
