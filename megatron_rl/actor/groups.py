"""Joining the ranks of an actor, and leaving them."""

import gc
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore, Store

from megatron_rl.actor import cpu
from megatron_rl.actor.parallel import Coordinates, Parallel
from megatron_rl.reshard.layout import LayoutError


def join(rank: int, world: int, store: Store, timeout_s: float = 1800.0) -> None:
    """Makes this process one rank of `world`: NCCL between GPUs, gloo where there are none."""
    backend = "gloo"
    if not cpu.install():
        backend = "cpu:gloo,cuda:nccl"
        # The ranks of a machine are neighbours; a launcher that shows each rank one device leaves it device 0.
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s))


def join_alone() -> None:
    """Makes this process the only rank."""
    join(0, 1, HashStore())


def cut(parallel: Parallel, seed: int = 0, timeout_s: float = 1800.0) -> Coordinates:
    """Divides the joined ranks as described and seeds them; returns where this rank stands."""
    world = dist.get_world_size()
    if world != parallel.world:
        raise LayoutError(
            f"parallel takes tp*cp*dp*pp = {parallel.world} ranks, but {world} joined; "
            "change parallel.dp, or launch as many."
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=1 if parallel.ep > 1 else None,
        distributed_timeout_minutes=max(1, round(timeout_s / 60)),
    )
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)
    return parallel.coordinates(dist.get_rank())


def is_first_of_its_kind() -> bool:
    """Whether no other rank of this pipeline stage says the same of the same rows, as tensor and context ranks do."""
    others = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_context_parallel_rank()
    return others == (0, 0)


def leave() -> None:
    """Undoes `cut` and `join`: the process may join again, and be cut another way."""
    parallel_state.destroy_model_parallel()
    # Two that Megatron forgets. A group lives as long as anything names it, and a gloo group is a thread that wakes a
    # hundred times a second: models that were given it, and are garbage now, go with it.
    for forgotten in ("_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP", "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP_GLOO"):
        setattr(parallel_state, forgotten, None)
    dist.destroy_process_group()
    gc.collect()
    gc.collect()  # the first lets go of models, and with them of hooks on their gradients, which name groups too
