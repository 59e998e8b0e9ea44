import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import ray

from megatron_rl.cluster import machines as own
from megatron_rl.reshard.layout import LayoutError


def test_machines_are_told_with_what_they_have_the_driver_s_first(machines):
    assert [(node.cpus, node.gpus) for node in machines.nodes] == [(2, 0), (2, 0)]
    assert machines.ids[0] == ray.get_runtime_context().get_node_id()


def test_machines_that_another_job_uses_are_refused(machines, two_nodes):
    held = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(held.ready.remote())
    with pytest.raises(LayoutError, match=r"another job holds 1 of the 4 CPUs of the Ray cluster"):
        own._check_free(two_nodes, 0.0)
    ray.kill(held)


def test_machines_that_are_expected_and_do_not_join_are_told(machines):
    own._check_there(machines, 2, 0.5)
    with pytest.raises(LayoutError, match=r"cluster\.machines is 3, but after 0\.5 s 2 had joined"):
        own._check_there(machines, 3, 0.5)


def test_an_address_at_which_nobody_listens_is_asked_no_longer_than_machines_are_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as door:
        host, port = door.getsockname()
        own._await_head(f"{host}:{port}", 0.0)
    with pytest.raises(
        LayoutError, match=rf"nobody listens at cluster\.address '{host}:{port}', which was tried for 0\.5"
    ):
        own.open_machines(f"{host}:{port}", timeout_s=0.5)
    own._await_head("auto", 0.0)
    own._await_head("", 0.0)


def test_how_a_child_ended_is_told_and_leaves_it_to_whoever_waits_for_it():
    with subprocess.Popen(["sleep", "600"]) as living:
        assert own.end_of(living.pid) == ""
        living.kill()
        while not own.end_of(living.pid):
            time.sleep(0.01)
        assert own.end_of(living.pid) == "died of SIGKILL"
        assert living.wait() == -9
        assert own.end_of(living.pid) == "died"
    with subprocess.Popen(["false"]) as ending:
        while not own.end_of(ending.pid):
            time.sleep(0.01)
        assert own.end_of(ending.pid) == "ended with 1"


def test_a_ray_that_was_joined_has_its_control_process_elsewhere(machines):
    assert machines.control is None
    assert machines.loss() == ""


class Holder:
    def ready(self) -> bool:
        return True


OWN = """
import signal, psutil
from megatron_rl.cluster.machines import open_machines

before = signal.getsignal(signal.SIGINT)
machines = open_machines("")
own = psutil.Process().children(recursive=True)
assert own and len(machines.nodes) == 1 and machines.nodes[0].cpus > 0
machines.close()
assert psutil.wait_procs(own, timeout=90)[1] == []
assert signal.getsignal(signal.SIGINT) is before
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
print("closed")
"""


def test_a_ray_of_one_s_own_ends_with_all_it_started_and_leaves_signals_as_they_were():
    ended = subprocess.run([sys.executable, "-c", OWN], capture_output=True, text=True, timeout=300)
    assert ended.stdout == "closed\n", ended.stderr


HEADLESS = """
import os, signal, sys, time
from pathlib import Path
import psutil
from megatron_rl.cluster.launcher import start_ranks
from megatron_rl.cluster.machines import open_machines
from megatron_rl.cluster.placement import Demand, place
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure
from tests.cluster.residents import Echo

machines = open_machines("")
placement = place(Demand(ranks=1, group=1, gpus=0, cpus=1), machines.nodes)
group = start_ranks(machines, placement, Echo, ClusterSettings(heartbeat_s=2.0), Path(sys.argv[1]))
own = psutil.Process().children(recursive=True)
assert machines.loss() == ""
os.kill(machines.control, signal.SIGKILL)
try:
    time.sleep(30.0)
except RankFailure as failure:
    print(failure)
machines.close()
assert psutil.wait_procs(own, timeout=90)[1] == []
"""


@pytest.mark.slow
def test_a_driver_is_told_within_two_heartbeats_that_ray_lost_its_control_process(tmp_path):
    ended = subprocess.run([sys.executable, "-c", HEADLESS, str(tmp_path)], capture_output=True, text=True, timeout=300)
    told = re.search(
        r"control process \(gcs_server, process \d+\) died of SIGKILL; its logs are in (\S+);", ended.stdout
    )
    assert told, ended.stdout + ended.stderr
    assert ended.returncode == 0, ended.stderr
    shutil.rmtree(told[1])
