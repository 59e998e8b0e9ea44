import os
import signal
import socket
import subprocess
import threading
import time

import psutil
import pytest
import ray

from megatron_rl.cluster import porter
from megatron_rl.cluster.porter import Away, MachineLost, admitted
from tests.cluster.errands import greet, kill, refuse


@pytest.fixture
def away(machines):
    return Away.on(machines, 1)


def test_a_process_elsewhere_has_a_line_to_the_driver_and_can_be_asked_for_and_ended(away, machines):
    process, line = away.start("group 1", greet)
    assert line.recv(16) == b"hello\n"
    assert line.getpeername()[0] == ray.util.get_node_ip_address() != "127.0.0.1"
    assert (
        ray.get(away.porter.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())) == machines.ids[1]
    )
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    away.end(process, kill)
    assert process.wait(5) == -9
    assert line.recv(16) == b""
    other, second = away.start("group 1", greet)
    assert second.recv(16) == b"hello\n"
    assert other.pid != process.pid
    second.close()
    assert other.wait(20) == 0


def test_what_cannot_be_started_is_told_by_name(away):
    with pytest.raises(MachineLost, match=r"group 1 could not be started; .* no room in the folder for logs"):
        away.start("group 1", refuse)


def test_a_machine_that_is_gone_has_ended_its_process_and_starts_no_other(away):
    process, line = away.start("group 1", greet)
    ray.kill(away.porter)
    with pytest.raises(MachineLost, match="group 1 could not be started; its machine is gone"):
        away.start("group 1", greet)
    assert process.poll() is not None
    away.end(process, kill)
    line.close()
    psutil.wait_procs([one for one in psutil.process_iter() if one.pid == process.pid], timeout=20)
    assert not psutil.pid_exists(process.pid)


def test_a_machine_that_falls_silent_is_given_up_and_ends_its_process_once_it_is_back(away, monkeypatch):
    monkeypatch.setattr(porter, "REACH_S", 0.2)
    process, line = away.start("group 1", greet)
    host = ray.get(away.porter.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(host, signal.SIGSTOP)
    try:
        assert process.wait(0.5) == porter.GONE
        away.end(process, kill)
        assert psutil.pid_exists(process.pid)
    finally:
        os.kill(host, signal.SIGCONT)
    assert line.recv(16) == b"hello\n"
    assert line.recv(16) == b""


def test_only_who_has_the_token_is_let_in():
    token = b"t" * 32
    with socket.create_server(("127.0.0.1", 0)) as door:
        liar, short, friend = (socket.create_connection(door.getsockname()) for _ in range(3))
        liar.sendall(b"x" * 32)
        short.close()
        friend.sendall(token + b"hello")
        line = admitted(door, token, lambda: False)
        assert line.recv(16) == b"hello"
        assert liar.recv(1) == b""
    for each in (liar, friend, line):
        each.close()


def test_nobody_is_waited_for_who_will_not_come():
    begun = time.monotonic()
    over = threading.Event()
    over.set()
    with socket.create_server(("127.0.0.1", 0)) as door:
        assert admitted(door, b"t" * 32, over.is_set) is None
    assert time.monotonic() - begun < 60
