from dataclasses import replace

import pytest

from megatron_rl.reshard.digest import ReceiverLost, TransferError
from megatron_rl.reshard.ring import memory_folder
from tests.rollout.scripted import SOURCE, open_fleet


@pytest.fixture
def fleet(tmp_path):
    opened = open_fleet(tmp_path, groups=2)
    yield opened
    opened.close()


def test_every_group_gets_a_version_over_one_delivery_that_lasts(fleet):
    first = fleet.begin(1)
    report = fleet.finish(1)
    assert (first.replicas, report.bytes, report.messages) == (2, 16, 2)
    assert [berth.version for berth in fleet.berths] == [1, 1]
    assert fleet.begin(2) is first
    fleet.finish(2)


def test_a_group_that_died_is_replaced_at_the_next_version_and_the_delivery_with_it(fleet):
    first = fleet.begin(1)
    fleet.finish(1)
    fleet.berths[0].group.process.kill()
    fleet.berths[0].group.process.wait()
    second = fleet.begin(2)
    fleet.finish(2)
    assert second.key != first.key
    assert [berth.version for berth in fleet.berths] == [2, 2]
    assert fleet.restarts == 1


def test_a_version_that_does_not_arrive_is_held_by_nobody_who_says_so(tmp_path):
    fleet = open_fleet(tmp_path, "receives nothing")
    first = fleet.begin(1)
    with pytest.raises(TransferError, match="version 1 did not reach every group: vLLM group 0 could not receive"):
        fleet.finish(1)
    assert fleet.berths[0].version == -1
    assert fleet.begin(2).key != first.key
    fleet.close()


@pytest.mark.parametrize(
    ("fault", "why"),
    [("dies receiving once", r"vLLM group \d died"), ("is stopped receiving once", r"vLLM group \d missed two heart")],
)
def test_a_group_lost_in_a_sync_ends_it_for_all_at_once_and_another_takes_its_place(tmp_path, fault, why):
    fleet = open_fleet(tmp_path, fault, groups=2)
    over = memory_folder() / f"{fleet.begin(1).key}.over"
    for berth in fleet.berths:
        berth.group.heartbeat_s = 1.0
    with pytest.raises(ReceiverLost, match=f"version 1 did not reach every group: {why}"):
        fleet.finish(1)
    assert over.exists(), "senders may not have looked yet"
    assert fleet.restarts == 1
    fleet.begin(1)
    fleet.finish(1)
    assert [berth.version for berth in fleet.berths] == [1, 1]
    assert not over.exists()
    fleet.close()


def test_a_replaced_group_rejoins_where_somebody_sends_and_waits_where_nobody_does(fleet):
    fleet.begin(1)
    fleet.finish(1)
    fleet.replace(0)
    fleet.berths[0].group.wait("ready", 30)
    assert not fleet.rejoin(0, 1)
    sent = []
    fleet.send = lambda delivery, version: sent.append((delivery.replicas, version))
    assert fleet.rejoin(0, 1)
    assert sent == [(1, 1)]
    assert [berth.version for berth in fleet.berths] == [1, 1]


def test_another_source_comes_over_another_delivery(fleet):
    first = fleet.begin(1)
    fleet.finish(1)
    fleet.expect(SOURCE, None)
    assert fleet.begin(2) is first
    fleet.finish(2)
    fleet.expect(replace(SOURCE, cut=replace(SOURCE.cut, dp=2)), None)
    assert fleet.begin(3).key != first.key
    fleet.finish(3)


def test_weights_are_not_awaited_from_nowhere(fleet):
    fleet.source = None
    with pytest.raises(RuntimeError, match="was not told what sends its weights"):
        fleet.begin(1)
