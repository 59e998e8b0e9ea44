import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megatron_rl.cluster.member import Member, dump_stacks

PROGRAM = """
import faulthandler, signal, sys, time
log = open(sys.argv[1], "a")
faulthandler.register(signal.SIGUSR1, file=log, all_threads=True)
def stand_here():
    print("ready", flush=True)
    time.sleep(60)
stand_here()
"""


def member(process: subprocess.Popen, log: Path) -> Member:
    return Member(rank=2, actor=None, pid=process.pid, machine=os.uname().nodename, node_id="", door=("", 0), log=log)


@contextmanager
def standing(log: Path) -> Iterator[Member]:
    """A process that waits to be asked where it stands."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(log)], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield member(process, log)
        finally:
            process.kill()


def stands_told(one: Member) -> bool:
    deadline = time.monotonic() + 20
    while "stand_here" not in one.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return "stand_here" in one.last_words()


def test_a_process_says_where_it_stands_even_when_it_was_stopped(tmp_path):
    with standing(tmp_path / "rank_0002.log") as one:
        os.kill(one.pid, signal.SIGSTOP)
        assert dump_stacks([one]) == "all stacks were saved"
        assert stands_told(one)


def test_processes_of_other_machines_are_asked_there_and_a_machine_that_is_lost_is_named(machines, tmp_path):
    with standing(tmp_path / "rank_0002.log") as one:
        reached = replace(one, machine="far", node_id=machines.ids[1], door=machines.doors[1])
        lost = replace(one, machine="farther", node_id="a" * len(machines.ids[1]), door=machines.doors[1])
        assert dump_stacks([reached, lost]) == "farther could not be reached, all other stacks were saved"
        assert stands_told(one)


def test_a_machine_that_opens_no_door_is_asked_nothing(machines, tmp_path):
    with standing(tmp_path / "rank_0002.log") as one, socket.create_server(("127.0.0.1", 0)) as closed:
        door = closed.getsockname()[:2]
        closed.close()
        shut = replace(one, machine="far", node_id=machines.ids[1], door=door)
        assert dump_stacks([one, shut]) == "far could not be reached, all other stacks were saved"
        assert stands_told(one)


def test_a_process_that_is_gone_is_asked_in_vain(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    one = member(process, tmp_path / "never")
    dump_stacks([one])
    assert "No such file" in one.last_words()
    assert str(one).startswith("rank 2 (process ")


def test_of_a_process_that_a_signal_ended_the_signal_and_its_stack_are_its_last_words(tmp_path):
    log = tmp_path / "rank_0002.log"
    heading = "--- 2026-11-22 05:04:00 rank_0002: process {} on gpu-17\n"
    stack = (
        "Fatal Python error: Bus error\n\nStack (most recent call first):\n" + '  File "transport.py" in _pack\n' * 20
    )
    log.write_text(heading.format(1) + "warning\n" * 20 + stack + "\nExtension modules: a, b, c (total: 3)\n")
    one = Member(rank=2, actor=None, pid=1, machine="gpu-17", node_id="", door=("", 0), log=log)
    assert one.last_words() == stack.rstrip()
    with log.open("a") as more:
        more.write(heading.format(2) + "begun anew\n")
    assert one.last_words() == "begun anew"
