"""Programs for `tests.ranks`: weights go from Megatron ranks to vLLM ranks in other processes and are checked there."""

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor.parallel import Parallel
from megatron_rl.reshard.delivery import Delivery
from megatron_rl.reshard.engines import vllm_layout
from megatron_rl.reshard.group_wire import GroupWire
from megatron_rl.reshard.layout import Layout, ModelShape
from megatron_rl.reshard.local import load_rank
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.placement import colocated, split
from megatron_rl.reshard.plan import ReshardPlan, plan
from megatron_rl.reshard.ring import CudaIpcWire, SharedMemoryWire
from megatron_rl.reshard.transport import Exchange, Parameters
from tests.reshard import by_hand

SHAPE = ModelShape(
    family="qwen3_moe",
    layers=3,
    hidden=16,
    heads=8,
    kv_heads=2,
    head_dim=4,
    ffn=32,
    vocabulary=50,
    experts=4,
    expert_ffn=8,
    dense_layers=(1,),
    item_bytes=4,
)
SPLIT = Parallel(tp=2)
COLOCATED = Parallel(tp=2, pp=2, stage_layers=(2, 1))


def plan_of(kind: str) -> ReshardPlan:
    """Two Megatron ranks and two vLLM ranks apart, or four of each on the same GPUs."""
    if kind == "split":
        source, target = megatron_layout(SHAPE, SPLIT), vllm_layout(SHAPE, tp=2)
        return plan(source, target, split(source, target))
    source, target = megatron_layout(SHAPE, COLOCATED), vllm_layout(SHAPE, tp=2, replicas=2)
    return plan(source, target, colocated(source, target))


def parameters(layout: Layout, rank: int, hf: dict[str, np.ndarray] | None) -> Parameters:
    """A rank's tensors, loaded, or full of what no checkpoint has."""
    tensors = {tensor.key: torch.full(tensor.shape, torch.nan) for tensor in layout.tensors(rank)}
    if hf is not None:
        load_rank(layout, rank, {name: torch.tensor(array) for name, array in hf.items()}.__getitem__, tensors)
    return tensors


def checkpoint(version: int) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) * version for name, array in by_hand.checkpoint(SHAPE).items()}


def differing(tensors: Parameters, rank: int, version: int) -> list[str]:
    """Names of the tensors that are not what slicing the checkpoint by hand gives."""
    expected = by_hand.vllm(checkpoint(version), SHAPE, 2, rank % 2)
    assert expected.keys() == tensors.keys()
    return [key.name for key, array in expected.items() if not np.array_equal(tensors[key].numpy(), array)]


def exchange(kind: str, wire: str, key: str = "", bucket_bytes: int = 1024) -> dict[str, object]:
    """Three syncs on this process's ranks; what the last one's report says, and what arrived wrong."""
    made, rank = plan_of(kind), dist.get_rank()
    # Apart, processes 0 and 1 are the actor's and 2 and 3 the engine's; together, each is one of each.
    sender = rank if kind == "colocated" or rank < 2 else None
    receiver = rank if kind == "colocated" else rank - 2 if rank >= 2 else None
    first = 0 if kind == "colocated" else 2
    carrier = (
        SharedMemoryWire(key, slot_bytes=bucket_bytes, timeout_s=30)
        if wire == "shared memory"
        else GroupWire(range(4), range(first, 4), bucket_bytes=bucket_bytes)
    )
    sources = {} if sender is None else {sender: parameters(made.source, sender, checkpoint(1))}
    targets = {} if receiver is None else {receiver: parameters(made.target, receiver, None)}
    sync = Exchange(plan=made, wire=carrier, sources=sources, targets=targets, dtype=torch.float32, verify="full")
    wrong = []
    for version in (1, 2, 3):
        for tensors in sources.values():
            for name, tensor in parameters(made.source, sender, checkpoint(version)).items():
                tensors[name].copy_(tensor)
        report = sync.run(version)
        for own, tensors in targets.items():
            wrong += differing(tensors, own, version)
    carrier.close()
    return {"bytes": report.bytes, "bound": report.bound, "messages": report.messages, "wrong": wrong}


def on_gpu(tensors: Parameters) -> Parameters:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


def deliver(delivery: dict) -> dict[str, object]:
    """One process of a delivery of version 2: a source rank, or a target rank that says what is not as it should be."""
    route, member = Delivery.of_plain(delivery), dist.get_rank()
    sources = len(route.plan.source.ranks)
    if member < sources:
        tensors = parameters(route.plan.source, member, checkpoint(2))
        return {"bytes": 0, "bound": 0, "wrong": [], "sent": route.sending({member: tensors}).run(2).messages}
    rank = member - sources
    tensors = parameters(route.plan.target, rank, None)
    report = route.receiving({rank: tensors}).run(2)
    return {"bytes": report.bytes, "bound": report.bound, "wrong": differing(tensors, rank, 2)}


def send_over_cuda_ipc(key: str) -> None:
    """Two syncs from both source ranks to another process of this GPU."""
    made, wire = plan_of("split"), CudaIpcWire(key, slot_bytes=1 << 16, timeout_s=120)
    sources = {rank: on_gpu(parameters(made.source, rank, checkpoint(1))) for rank in range(2)}
    sync = Exchange(plan=made, wire=wire, sources=sources, dtype=torch.float32, verify="full")
    for version in (1, 2):
        for rank, tensors in sources.items():
            for name, tensor in parameters(made.source, rank, checkpoint(version)).items():
                tensors[name].copy_(tensor)
        sync.run(version)
