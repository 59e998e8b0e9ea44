"""What a weight sync moves and how long that takes, from the very plan that the run would carry out."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Setup
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import Placement, colocated, split
from megatron_rl.reshard.plan import ReshardPlan, plan

ROUGH_S = 0.2
"""What any sync costs besides: workers called, versions checked, caches emptied."""


class Sync(NamedTuple):
    """Sync(wire_bytes=..., local_bytes=..., seconds=...): bytes between GPUs, bytes that stay, and the time."""

    wire_bytes: int
    local_bytes: int
    seconds: float


def sync(setup: Setup, choice: Choice) -> Sync:
    """Of one version of the weights, by the busiest GPU's wires."""
    shape = setup.architecture.shape
    source = megatron_layout(shape, choice.actor)
    target = vllm_layout(shape, choice.engines.tp, choice.engines.replicas)
    placement = colocated(source, target) if choice.placement == "colocated" else split(source, target)
    made = plan(source, target, placement)
    return Sync(made.wire_bytes, made.local_bytes, ROUGH_S + _seconds(made, placement, setup.cluster))


def rough(setup: Setup, choice: Choice, model_bytes: int) -> Sync:
    """An upper bound for a search: every GPU of an engine gets all that it needs from another machine."""
    entering = model_bytes // choice.engines.tp
    wire = setup.cluster.network * setup.cluster.reached.wires
    return Sync(entering * choice.engines.gpus, 0, ROUGH_S + entering / wire)


def _seconds(made: ReshardPlan, placement: Placement, cluster: Cluster) -> float:
    """Each GPU sends and receives at the same time; within a machine over links, between machines over the network."""
    near: Counter[tuple[int, bool]] = Counter()
    far: Counter[tuple[int, bool]] = Counter()
    for transfer in made.transfers:
        sender, receiver = placement.source[transfer.sender], placement.target[transfer.receiver]
        moved = made.elements(transfer) * made.target.shape.item_bytes
        is_near = sender // cluster.gpus_per_node == receiver // cluster.gpus_per_node
        if not transfer.is_local:
            for end in ((sender, True), (receiver, False)):
                (near if is_near else far)[end] += moved
    wires = cluster.reached.wires
    slowest = [moved / (cluster.gpu.link * wires) for moved in near.values()]
    slowest += [moved / (cluster.network * wires) for moved in far.values()]
    return max(slowest, default=0.0)
