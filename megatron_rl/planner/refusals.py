"""What a cluster or a run rules out before any memory is counted."""

from __future__ import annotations

from megatron_rl.actor import fit, lora
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Setup
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.rollout.servable import sleepless
from megatron_rl.spec.schema import SpecError


def check(setup: Setup, choice: Choice) -> None:
    """SpecError where the model cannot be cut so, the GPUs cannot compute so, or the machines are too few."""
    check_setup(setup)
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
    if setup.sleeps and (problems := sleepless(ahead=False, split=choice.placement == "split")):
        raise SpecError(problems)
    if choice.actor.update.microbatch_tokens < setup.job.longest:
        raise SpecError(
            f"actor.update.microbatch_tokens is {choice.actor.update.microbatch_tokens}, but a prompt and its response "
            f"may have {setup.job.longest} tokens together; raise it, or lower data.max_prompt_tokens or "
            "sampling.max_tokens."
        )
    _check_gpus(setup.cluster, choice)
    _check_groups(setup.cluster, choice.engines)


def check_setup(setup: Setup) -> None:
    """SpecError where no cut could help: the GPU lacks units, a response outgrows the model, the step cannot be."""
    gpu, job, context = setup.cluster.gpu, setup.job, setup.architecture.context
    if setup.actor.precision.compute == "fp8" and gpu.fp8 == gpu.bf16:
        raise SpecError(f"{gpu.name} has no FP8 units; take bf16, or another GPU.")
    if job.prompt_tokens + job.lengths.most > context:
        raise SpecError(
            f"responses of {job.lengths.most} tokens after prompts of {job.prompt_tokens} are longer than the model's "
            f"context of {context}; lower sampling.max_tokens to at most {max(0, context - job.prompt_tokens)}."
        )
    if job.rows < job.optimizer_steps:
        raise SpecError(
            f"{job.optimizer_steps} optimizer steps are asked for, but {job.rows} rollouts cannot be shared out among "
            "more than that."
        )
    if setup.sleeps and (problems := sleepless(ahead=job.ahead > 0, split=False)):
        raise SpecError(problems)


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
