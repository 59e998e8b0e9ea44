"""Weights on the move between tensors of a GPU, between processes that share one, and over NCCL."""

from __future__ import annotations

import os
import time
import uuid
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_rl.actor import groups
from megatron_rl.actor.cpu import device
from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.group_wire import GroupWire
from megatron_rl.reshard.ring import CudaIpcWire
from megatron_rl.reshard.transport import Exchange
from tests.reshard.exchanges import checkpoint, differing, parameters, plan_of

pytestmark = pytest.mark.gpu

PAIR = Pair(0, 1)
BYTES, BUCKETS = 64 << 20, 32


def test_a_plan_is_carried_out_between_tensors_of_the_gpu():
    made = plan_of("split")
    sources = {
        rank: {key: tensor.to(device()) for key, tensor in parameters(made.source, rank, checkpoint(1)).items()}
        for rank in range(2)
    }
    targets = {
        rank: {key: tensor.to(device()) for key, tensor in parameters(made.target, rank, None).items()}
        for rank in range(2)
    }
    Exchange(plan=made, sources=sources, targets=targets, dtype=torch.float32, verify="full").run(1)
    for rank, tensors in targets.items():
        assert differing({key: tensor.cpu() for key, tensor in tensors.items()}, rank, 1) == []


def test_a_joined_process_reduces_on_the_gpu_and_on_the_host(alone):
    """Both backends in one group: NCCL for tensors on the GPU, gloo for those in host memory."""
    for where in (device(), torch.device("cpu")):
        tensor = torch.arange(4.0, device=where)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [0, 1, 2, 3]
    if torch.cuda.is_available():
        assert {"cpu:gloo", "cuda:nccl"} <= set(dist.get_backend_config().split(","))


def bucket(number: int) -> torch.Tensor:
    return torch.full((BYTES,), number + 1, dtype=torch.uint8, device="cuda")


def send_buckets(key: str) -> None:
    wire = CudaIpcWire(key, slot_bytes=BYTES, timeout_s=120)
    for number in range(BUCKETS):
        wire.send(PAIR, BYTES, lambda message, number=number: message.copy_(bucket(number)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="shares memory of a CUDA device")
def test_two_processes_pass_gibibytes_through_shared_gpu_memory(measured):
    key, target = f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}", torch.empty(BYTES, dtype=torch.uint8, device="cuda")
    process = get_context("spawn").Process(target=send_buckets, args=(key,))
    process.start()
    wire, begun = CudaIpcWire(key, slot_bytes=BYTES, timeout_s=120), 0.0
    for number in range(BUCKETS):
        wire.receive(PAIR, BYTES, target.copy_)
        # The first bucket waits for the other process to import torch.
        begun = begun or time.perf_counter()
        assert torch.equal(target, bucket(number))
    seconds = time.perf_counter() - begun
    process.join(60)
    wire.close()
    measured(gb_per_s=BYTES * (BUCKETS - 1) / 1e9 / seconds)
    assert process.exitcode == 0


def exchange_over_nccl(rank: int, rendezvous: str) -> None:
    groups.join(rank, 2, dist.FileStore(rendezvous, 2), timeout_s=120)
    wire = GroupWire((0, 1), (0, 1), device="cuda", bucket_bytes=BYTES)
    for number in range(4):
        if rank == 0:
            wire.send(PAIR, BYTES, lambda message, number=number: message.copy_(bucket(number)))
        else:
            received = torch.empty(BYTES, dtype=torch.uint8, device="cuda")
            wire.receive(PAIR, BYTES, received.copy_)
            assert torch.equal(received, bucket(number))
    wire.flush()
    torch.cuda.synchronize()
    groups.leave()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a CUDA device for each of two ranks")
def test_buckets_cross_over_nccl_between_two_gpus(tmp_path: Path):
    spawn = get_context("spawn")
    ranks = [spawn.Process(target=exchange_over_nccl, args=(rank, str(tmp_path / "store"))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(180)
    assert [rank.exitcode for rank in ranks] == [0, 0]
