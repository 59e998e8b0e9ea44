from dataclasses import replace

import pytest

from megatron_rl.cluster.placement import Demand, Node, Seat, place
from megatron_rl.reshard.layout import LayoutError

LAPTOP = (Node(name="laptop", gpus=0, cpus=2),)
TWO = tuple(Node(name=name, gpus=4, cpus=16) for name in ("a", "b"))


def test_ranks_share_the_cores_of_a_laptop():
    placed = place(Demand(ranks=4, group=2, gpus=0), LAPTOP)
    assert placed.ranks == (Seat(0),) * 4
    assert placed.engines == (Seat(0),)
    assert placed.is_one_machine
    assert list(placed.lines()) == ["laptop: ranks 0-3; engines 0"]


def test_split_engines_have_gpus_of_their_own():
    placed = place(Demand(ranks=4, group=2, gpus=1, engines=2, engine_gpus=2, placement="split"), TWO)
    assert placed.ranks == (Seat(0, (0,)), Seat(0, (1,)), Seat(0, (2,)), Seat(0, (3,)))
    assert placed.engines == (Seat(1, (0, 1)), Seat(1, (2, 3)))
    assert not placed.is_one_machine


def test_colocated_engines_share_the_gpus_of_ranks():
    placed = place(Demand(ranks=8, group=4, gpus=1, engines=4, engine_gpus=2), TWO)
    assert placed.engines == (Seat(0, (0, 1)), Seat(0, (2, 3)), Seat(1, (0, 1)), Seat(1, (2, 3)))


def test_engines_without_gpus_are_the_driver_s_or_stand_on_the_ranks_machines_in_turn():
    nodes = tuple(Node(name=name, gpus=0, cpus=2) for name in ("a", "b", "c"))
    demand = Demand(ranks=2, group=1, gpus=0, cpus=2, engines=3)
    assert place(demand, nodes).engines == (Seat(0),) * 3
    for placement in ("colocated", "split"):
        placed = place(replace(demand, spread=True, placement=placement), nodes)
        assert placed.engines == (Seat(0), Seat(1), Seat(0))


def test_an_engine_larger_than_a_machine_is_refused():
    for placement, said in (
        ("split", "engine 0: 8 GPUs on one machine"),
        ("colocated", "an engine stands on one machine"),
    ):
        with pytest.raises(LayoutError, match=said):
            place(Demand(ranks=4, group=2, gpus=1, engines=1, engine_gpus=8, placement=placement), TWO)


def test_a_tensor_parallel_group_stays_on_one_machine():
    placed = place(Demand(ranks=6, group=3, gpus=1), TWO)
    assert [seat.node for seat in placed.ranks] == [0, 0, 0, 1, 1, 1]


def test_no_gpu_is_given_twice():
    placed = place(Demand(ranks=4, group=1, gpus=1, engines=4, engine_gpus=1, placement="split"), TWO)
    seats = [(seat.node, gpu) for seat in (*placed.ranks, *placed.engines) for gpu in seat.gpus]
    assert len(set(seats)) == len(seats) == 8


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        (
            Demand(ranks=12, group=2, gpus=1),
            r"ranks 8-9: 2 GPUs .* free are 'a' 0 of 4, 'b' 0 of 4; take more machines",
        ),
        (Demand(ranks=8, group=8, gpus=1), r"ranks 0-7: 8 GPUs .* no machine has 8, so lower actor\.tp"),
        (
            Demand(ranks=8, group=4, gpus=1, engines=1, engine_gpus=1, placement="split"),
            r"engine 0: 1 GPUs .*'b' 0 of 4",
        ),
        (Demand(ranks=40, group=1, gpus=0, cpus=1), r"rank 32: 1 cores .* free are 'a' 0 of 16, 'b' 0 of 16"),
        (Demand(ranks=3, group=3, gpus=1, engines=2, engine_gpus=2), r"do not fit beside the ranks.*'a' 3; .*'split'"),
    ],
)
def test_what_is_short_is_named_with_what_to_change(demand, said):
    with pytest.raises(LayoutError, match=said):
        place(demand, TWO)


def test_an_allocation_without_machines_is_refused():
    with pytest.raises(LayoutError, match="no machine that is up"):
        place(Demand(ranks=1, group=1, gpus=0), ())
