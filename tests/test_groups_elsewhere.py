"""Groups of vLLM on several machines: two nodes of one Ray, and groups that need no vLLM."""

import os
import signal

import psutil
import pytest
import ray

from megatron_rl.cluster.machines import open_machines
from megatron_rl.cluster.placement import Demand, place
from megatron_rl.cluster.porter import MachineLost
from megatron_rl.processes import seats_of
from tests.cluster.two_nodes import address
from tests.rollout.opening import asked
from tests.rollout.scripted import SOURCE, open_scripted, sends_nothing
from tests.rollout.test_vllm_wave import PROMPTS, WHOLE, outcome


@pytest.fixture
def seats():
    machines = open_machines(address())
    demand = Demand(ranks=2, group=1, gpus=0, cpus=2, engines=2, spread=True)
    yield seats_of(place(demand, machines.nodes), machines)
    machines.close()


def test_groups_on_two_machines_share_a_wave_and_score_it(tmp_path, seats):
    engine = open_scripted(tmp_path, groups=2, seats=seats)
    here, there = (berth.group for berth in engine.fleet.berths)
    assert (here.host.machine, there.post.name) == ("", f"vLLM group 1 on {there.host.machine}")
    assert there.host.machine
    rollouts = engine.generate(asked(PROMPTS))
    assert outcome(rollouts) == ([WHOLE] * 5, [""] * 5)
    assert engine.score(rollouts).values.tolist() == [-0.5] * 30
    pids = [here.pid, there.pid]
    engine.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_group_elsewhere_that_dies_at_work_is_replaced_there_and_its_requests_go_on(tmp_path, seats):
    engine = open_scripted(tmp_path, "dies once", seats=seats[1:])
    before = engine.fleet.berths[0].group
    assert outcome(engine.generate(asked(PROMPTS))) == ([WHOLE] * 5, [""] * 5)
    after = engine.fleet.berths[0].group
    assert (engine.fleet.restarts, engine.fleet.berths[0].version) == (1, 0)
    assert after.pid != before.pid
    assert after.host == before.host == seats[1].host
    engine.close()


def test_a_group_elsewhere_that_was_killed_between_waves_is_replaced_at_the_next_version(tmp_path, seats):
    engine = open_scripted(tmp_path, groups=2, seats=seats)
    first = engine.fleet.delivery
    os.kill(engine.fleet.berths[1].group.pid, signal.SIGKILL)
    engine.fleet.berths[1].group.process.wait(20)
    assert engine.begin(1).key != first.key
    engine.finish(1)
    engine.serve(1)
    assert engine.fleet.restarts == 1
    engine.close()


def test_a_machine_that_is_lost_ends_the_run_with_its_name_and_its_group_s(tmp_path, seats):
    engine = open_scripted(tmp_path, seats=seats[1:])
    machine = seats[1].host.machine
    ray.kill(seats[1].host.porter)
    os.killpg(engine.fleet.berths[0].group.pid, signal.SIGKILL)
    with pytest.raises(MachineLost, match=f"vLLM group 0 on {machine} could not be started; its machine is gone"):
        engine.generate(asked(PROMPTS))
    engine.close()


def test_weights_take_the_network_where_a_meeting_is_told_and_memory_where_none_is(tmp_path):
    engine = open_scripted(tmp_path)
    engine.fleet.terms = type(engine.fleet.terms)(**{**vars(engine.fleet.terms), "wire": "auto"})
    engine.expect(SOURCE, sends_nothing, ("10.0.0.1", 4711))
    apart = engine.begin(1)
    engine.finish(1)
    engine.expect(SOURCE, sends_nothing)
    together = engine.begin(2)
    engine.finish(2)
    assert (apart.wire, apart.meeting, together.wire, together.meeting) == (
        "network",
        ("10.0.0.1", 4711),
        "memory",
        None,
    )
    engine.close()
