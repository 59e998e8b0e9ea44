import os
import signal
import subprocess
import sys
import time
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
    return Member(rank=2, actor=None, pid=process.pid, machine=os.uname().nodename, node_id="", log=log)


def test_a_process_says_where_it_stands_even_when_it_was_stopped(tmp_path):
    log = tmp_path / "rank_0002.log"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(log)], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            dump_stacks([member(process, log)])
            deadline = time.monotonic() + 20
            while "stand_here" not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "stand_here" in member(process, log).last_words()
        finally:
            process.kill()


def test_a_process_that_is_gone_is_asked_in_vain(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    one = member(process, tmp_path / "never")
    dump_stacks([one])
    assert "No such file" in one.last_words()
    assert str(one).startswith("rank 2 (process ")
