import pytest

from megatron_rl.cluster.launcher import start_ranks
from megatron_rl.cluster.placement import Demand, place
from megatron_rl.reshard.layout import LayoutError
from tests.cluster.conftest import SETTINGS
from tests.cluster.residents import Echo


class Refuses(Echo):
    def __init__(self, post, store):
        raise LayoutError("rank cannot be")


def test_each_rank_is_a_process_on_its_machine_with_a_log_of_its_own(start):
    group = start()
    assert [member.rank for member in group.members] == [0, 1]
    assert len({member.pid for member in group.members}) == 2
    assert [member.log.name for member in group.members] == ["rank_0000.log", "rank_0001.log"]
    assert all(f"process {member.pid} on" in member.log.read_text() for member in group.members)
    assert group.members[0].node_id == group.members[1].node_id


def test_what_a_rank_refuses_to_be_is_told_as_it_told_it(machines, tmp_path):
    placement = place(Demand(ranks=2, group=2, gpus=0), machines.nodes)
    with pytest.raises(LayoutError, match="rank cannot be"):
        start_ranks(machines, placement, Refuses, SETTINGS, tmp_path)
