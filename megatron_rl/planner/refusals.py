"""What a cluster or a run rules out before any memory is counted."""

from __future__ import annotations

from megatron_rl.actor import fit, lora
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Setup
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.spec.schema import SpecError


def check(setup: Setup, choice: Choice) -> None:
    """SpecError where the model cannot be cut so, the GPUs cannot compute so, or the machines are too few."""
    check_precision(setup)
    try:
        fit.check(setup.architecture, choice.actor)
        lora.check(choice.actor.lora, setup.architecture, choice.actor)
    except LayoutError as error:
        raise SpecError(str(error)) from None
    shape, tp = setup.architecture.shape, choice.engines.tp
    if shape.heads % tp or not can_share(shape.kv_heads, tp):
        raise SpecError(
            f"{shape.heads} attention heads and {shape.kv_heads} key-value heads cannot be shared out over "
            f"rollout.vllm.tp = {tp}; take one that divides the former, and is a multiple or a divisor of the latter."
        )
    _check_gpus(setup.cluster, choice)
    _check_groups(setup.cluster, choice.engines)


def check_precision(setup: Setup) -> None:
    """SpecError where the GPU has no units for what is asked for."""
    gpu = setup.cluster.gpu
    if setup.actor.precision.compute == "fp8" and gpu.fp8 == gpu.bf16:
        raise SpecError(f"{gpu.name} has no FP8 units; take bf16, or another GPU.")


def can_share(kv_heads: int, tp: int) -> bool:
    """Whether so many ranks hold whole key-value heads, or share single ones evenly."""
    return not (kv_heads % tp and tp % kv_heads)


def _check_gpus(cluster: Cluster, choice: Choice) -> None:
    actor, engines, placement = choice.actor, choice.engines, choice.placement
    needed = actor.world + engines.gpus if placement == "split" else max(actor.world, engines.gpus)
    if needed > cluster.gpus:
        raise SpecError(
            f"the run asks for {needed} GPUs, {actor.world} for the actor and {engines.gpus} for the engines "
            f"({placement}), but {cluster.nodes} x {cluster.gpus_per_node} are planned; take more nodes, or look for "
            "layouts of these with --search."
        )


def _check_groups(cluster: Cluster, engines: Engines) -> None:
    a_machine = cluster.gpus_per_node // engines.tp
    if a_machine * cluster.nodes < engines.replicas:
        raise SpecError(
            f"{engines.replicas} rollout groups of {engines.tp} GPUs are asked for, and a group stands on one machine, "
            f"but {cluster.nodes} x {cluster.gpus_per_node} GPUs hold {a_machine * cluster.nodes}; lower "
            "rollout.vllm.tp or rollout.vllm.replicas."
        )
