import socket
import subprocess
import sys

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
