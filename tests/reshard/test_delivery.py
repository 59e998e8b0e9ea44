import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch.distributed import TCPStore

from megatron_rl.reshard.delivery import Cut, Delivery, Source
from megatron_rl.reshard.digest import TransferError
from megatron_rl.reshard.layout import LayoutError
from megatron_rl.reshard.local import load_rank
from megatron_rl.reshard.ring import memory_folder
from tests import ranks
from tests.reshard import by_hand
from tests.reshard.exchanges import COLOCATED, SHAPE, deliver


@pytest.fixture
def meeting():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    yield "127.0.0.1", store.port
    del store


def delivery(**changes):
    source = Source(shape=SHAPE, cut=Cut.of(COLOCATED, SHAPE.layers))
    return Delivery(
        **{
            "source": source,
            "tp": 2,
            "replicas": 2,
            "key": f"test-{uuid.uuid4().hex[:8]}",
            "timeout_s": 30.0,
            **changes,
        }
    )


def tensors(layout, rank, read=None):
    made = {tensor.key: torch.full(tensor.shape, torch.nan) for tensor in layout.tensors(rank)}
    if read is not None:
        load_rank(layout, rank, read, made)
    return made


def test_it_crosses_processes_as_json():
    sent = delivery(verify="full", dtype="bfloat16", wire="network", meeting=("10.0.0.1", 4711))
    assert Delivery.of_plain(json.loads(json.dumps(sent.to_plain()))) == sent


def test_both_ends_make_the_same_plan():
    one, other = delivery(), delivery()
    assert list(one.plan.copies()) == list(other.plan.copies())
    assert one.plan.source.label == "megatron tp2 dp1 pp2"
    assert one.plan.target.label == "vllm tp2 replicas2"


@pytest.mark.parametrize("wire", ["memory", "network"])
def test_every_rank_of_every_group_gets_its_slices(wire, meeting):
    route = delivery(wire=wire, meeting=meeting, verify="full")
    plan = route.plan
    read = {name: torch.tensor(array).float() for name, array in by_hand.checkpoint(SHAPE).items()}.__getitem__
    sources = {rank: tensors(plan.source, rank, read) for rank in range(4)}
    targets = {rank: tensors(plan.target, rank) for rank in range(4)}
    ends = [route.receiving({rank: targets[rank]}) for rank in range(4)]
    ends += [route.sending({rank: sources[rank]}) for rank in range(4)]
    # Every end waits for the others, as they do in processes of their own.
    with ThreadPoolExecutor(len(ends)) as pool:
        reports = list(pool.map(lambda end: end.run(1), ends))[:4]
    for rank in range(4):
        expected = tensors(plan.target, rank, read)
        assert all(torch.equal(targets[rank][key], expected[key]) for key in expected)
    assert sum(report.bytes for report in reports) == sum(report.bound for report in reports)
    route.sweep()
    assert not list(memory_folder().glob(f"{route.key}*"))


def test_it_crosses_the_network_between_processes(meeting):
    route = delivery(source=Source(shape=SHAPE, cut=Cut(tp=2, pp=1, chunks=(SHAPE.layers,))), replicas=1)
    route = replace(route, wire="network", meeting=meeting, verify="full")
    reports = ranks.run(deliver, world=4, delivery=route.to_plain())
    assert sum(report["bytes"] for report in reports) == sum(report["bound"] for report in reports) > 0
    assert [report["wrong"] for report in reports] == [[]] * 4


def test_a_sender_that_stays_away_is_told_of_in_time(meeting):
    route = delivery(wire="network", meeting=meeting, replicas=1, tp=1, timeout_s=0.5)
    targets = {0: tensors(route.plan.target, 0)}
    with pytest.raises(TransferError, match=r"4 ranks and 1 of the engine's did not all meet in 0.5 s"):
        route.receiving(targets).run(1)


def test_the_network_needs_a_place_to_meet_and_a_process_for_each_rank(meeting):
    for refused in (delivery(wire="network"), delivery(wire="network", meeting=meeting)):
        with pytest.raises(LayoutError, match="need a place to meet and a process for each rank"):
            refused.sending({0: {}, 1: {}})


def test_a_cut_serves_only_the_model_it_was_made_for():
    with pytest.raises(LayoutError, match=r"chunks \(2, 1\) do not add up to the model's 4 layers"):
        Cut.of(COLOCATED, SHAPE.layers).chunk_layers(4)


def test_memory_of_a_gpu_is_refused_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LayoutError, match="CUDA IPC needs a CUDA device"):
        delivery(wire="cuda_ipc").sending({})
