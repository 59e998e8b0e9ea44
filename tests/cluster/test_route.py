import threading
import uuid
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from megatron_rl.actor.parallel import Parallel
from megatron_rl.cluster.rank import Address
from megatron_rl.cluster.route import Route
from megatron_rl.reshard.layout import ModelShape
from megatron_rl.reshard.local import load_rank
from tests.reshard import by_hand

SHAPE = ModelShape(
    family="qwen3", layers=2, hidden=16, heads=8, kv_heads=2, head_dim=4, ffn=32, vocabulary=50, item_bytes=4
)


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))


@pytest.mark.parametrize("kind", ["memory", "gloo"])
def test_ranks_that_hold_parts_fill_an_engine_that_holds_all(kind, store):
    meeting = Address("127.0.0.1", store.port) if kind == "gloo" else None
    facts = {"shape": SHAPE, "parallel": Parallel(tp=2), "modules": "local", "key": uuid.uuid4().hex}
    route = Route(**facts, dtype=torch.float32, meeting=meeting, timeout_s=30.0)
    hf = {name: torch.tensor(array) for name, array in by_hand.checkpoint(SHAPE).items()}
    arrived = {tensor.key: torch.zeros(tensor.shape) for tensor in route.plan.target.tensors(0)}
    threads = [threading.Thread(target=send, args=(route, rank, hf)) for rank in range(2)]
    for thread in threads:
        thread.start()
    receiving = route.receiving(arrived)
    report = receiving.run(3)
    for thread in threads:
        thread.join(30)
    receiving.wire.close()
    assert report.bytes == report.bound
    assert {key.name for key in arrived} == hf.keys()
    assert all(torch.equal(tensor, hf[key.name]) for key, tensor in arrived.items())


def send(route: Route, rank: int, hf: dict[str, torch.Tensor]) -> None:
    layout = route.plan.source
    own = {tensor.key: torch.zeros(tensor.shape) for tensor in layout.tensors(rank)}
    load_rank(layout, rank, hf.__getitem__, own)
    route.sending({rank: own}).run(3)
