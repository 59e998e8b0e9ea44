import errno
import os
import shutil
import subprocess
import sys
import uuid
from multiprocessing import get_context

import pytest
import torch

from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.reshard.ring import CudaIpcWire, SharedMemoryWire, give_up, memory_folder, sweep
from megatron_rl.reshard.transport import Exchange
from tests import ranks
from tests.reshard.exchanges import differing, exchange, on_gpu, parameters, plan_of, send_over_cuda_ipc

PAIR = Pair(0, 1)


def ignore(message):
    pass


@pytest.mark.parametrize("kind", ["split", "colocated"])
def test_weights_cross_between_processes_over_shared_memory(kind):
    key = f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    reports = ranks.run(exchange, world=4, kind=kind, wire="shared memory", key=key)
    assert [report["wrong"] for report in reports] == [[]] * 4
    assert all(report["bytes"] == report["bound"] for report in reports)
    assert not list(memory_folder().glob(f"{key}*"))


def test_a_sender_waits_for_a_slot_and_a_receiver_for_a_bucket_and_neither_forever(tmp_path):
    receiver = SharedMemoryWire("run", tmp_path, slot_bytes=64, slots=2, timeout_s=0.05)
    with pytest.raises(TransferError, match=r"waited too long for a bucket in run-0-1\.ring"):
        receiver.receive(PAIR, 64, ignore)
    sender = SharedMemoryWire("run", tmp_path, slot_bytes=64, slots=2, timeout_s=0.05)
    for value in (1, 2):
        sender.send(PAIR, 8, lambda message, value=value: message.fill_(value))
    with pytest.raises(TransferError, match="waited too long for an empty slot"):
        sender.send(PAIR, 8, lambda message: message.fill_(3))
    seen = []
    for _ in range(2):
        receiver.receive(PAIR, 8, lambda message: seen.append(int(message[0])))
    assert seen == [1, 2]
    assert not list(tmp_path.iterdir()), "a ring that both ends have needs no name, which would outlast a kill"


def test_a_sender_whose_receiver_never_came_says_so(tmp_path):
    with pytest.raises(TransferError, match=r"rank 1 did not open run-0-1\.ring"):
        SharedMemoryWire("run", tmp_path, timeout_s=0.02).send(PAIR, 8, ignore)


def test_nobody_waits_at_a_wire_that_was_given_up(tmp_path):
    give_up("run", tmp_path)
    wire = SharedMemoryWire("run", tmp_path, slot_bytes=64, timeout_s=600.0)
    for wait in (wire.send, wire.receive):
        with pytest.raises(TransferError, match="the sync was given up, since a process at its ends was lost"):
            wait(PAIR, 8, ignore)
    sweep("run", tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_sides_must_have_slots_of_one_size(tmp_path):
    with pytest.raises(TransferError):
        SharedMemoryWire("run", tmp_path, slot_bytes=128, timeout_s=0.02).receive(PAIR, 8, ignore)
    with pytest.raises(LayoutError, match="give both the same slot_bytes"):
        SharedMemoryWire("run", tmp_path, slot_bytes=64, timeout_s=0.02).send(PAIR, 8, ignore)


def test_a_second_run_of_the_same_name_is_refused(tmp_path):
    for expected in (TransferError, FileExistsError):
        with pytest.raises(expected):
            SharedMemoryWire("run", tmp_path, slot_bytes=64, timeout_s=0.01).receive(PAIR, 8, ignore)


def test_a_folder_too_small_for_a_ring_is_told_with_its_size_the_need_and_what_to_do(tmp_path, monkeypatch):
    def is_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    told = r"16\.0 MiB for each two processes .* but it has .* of them free; .*--shm-size=1g.*remount,size=1g"
    with pytest.raises(LayoutError, match=told):
        SharedMemoryWire("run", tmp_path, timeout_s=0.02).receive(PAIR, 8, ignore)
    assert not list(tmp_path.iterdir())


SMALL = 'mount -t tmpfs -o size=1m small "$0" && echo on && exec "$@"'
RECEIVE = """
import sys
from pathlib import Path
from megatron_rl.reshard.buckets import Pair
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.reshard.ring import SharedMemoryWire
try:
    SharedMemoryWire("run", Path(sys.argv[1]), timeout_s=0.02).receive(Pair(0, 1), 8, print)
except LayoutError as error:
    print(error, list(Path(sys.argv[1]).iterdir()))
"""


def test_a_memory_of_one_mebibyte_kills_nobody(tmp_path):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("a memory of one's own needs root and util-linux")
    apart = ["unshare", "--mount", "sh", "-c", SMALL, str(tmp_path), sys.executable, "-c", RECEIVE, str(tmp_path)]
    ran = subprocess.run(apart, capture_output=True, text=True, timeout=120)
    if not ran.stdout.startswith("on\n"):
        pytest.skip(f"this machine makes no namespace of mounts: {ran.stderr.strip()}")
    assert "but it has 1.0 MiB, 1.0 MiB of them free" in ran.stdout, ran.stderr
    assert ran.stdout.endswith(" []\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_ipc_without_cuda_is_refused():
    with pytest.raises(LayoutError, match="needs a CUDA device and this machine has none"):
        CudaIpcWire("run")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_cross_between_processes_that_share_a_gpu():
    key = f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    process = get_context("spawn").Process(target=send_over_cuda_ipc, args=(key,))
    process.start()
    wire, made = CudaIpcWire(key, slot_bytes=1 << 16, timeout_s=120), plan_of("split")
    targets = {rank: on_gpu(parameters(made.target, rank, None)) for rank in range(2)}
    sync = Exchange(plan=made, wire=wire, targets=targets, dtype=torch.float32, verify="full")
    for version in (1, 2):
        assert sync.run(version).ratio == 1.0
        for rank, tensors in targets.items():
            assert differing({name: tensor.cpu() for name, tensor in tensors.items()}, rank, version) == []
    process.join(60)
    wire.close()
    assert process.exitcode == 0
