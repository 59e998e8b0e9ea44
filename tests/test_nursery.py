import textwrap
import time

import psutil
import pytest

from megatron_rl.nursery import Nursery


@pytest.fixture
def echoing(tmp_path, monkeypatch):
    """A module of the smallest nursery there can be: its forks send every line back."""
    (tmp_path / "echoing.py").write_text(
        textwrap.dedent("""
        import json, os, signal, socket, sys

        pool = socket.socket(fileno=int(sys.argv[1]))
        order = json.loads(pool.makefile("rb").readline())
        pool.sendall(json.dumps(order).encode() + b"\\n")
        while True:
            data, attached, _, _ = socket.recv_fds(pool, 4096, 1)
            if not data:
                break
            command = json.loads(data)
            if command["command"] == "start":
                pid = os.fork()
                if not pid:
                    os.setpgid(0, 0)
                    wire = socket.socket(fileno=attached[0])
                    for line in wire.makefile("rb"):
                        wire.sendall(line)
                    os._exit(0)
                os.close(attached[0])
                pool.sendall(json.dumps({"pid": pid}).encode() + b"\\n")
            else:
                os.kill(command["pid"], signal.SIGKILL)
                os.waitpid(command["pid"], 0)
                pool.sendall(b"{}\\n")
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    nursery = Nursery("echoing", {"hello": "there"})
    yield nursery
    nursery.close()


def said(fork, line):
    fork.wire.sendall(line)
    while not fork.is_heard():
        pass
    return fork.line()


def test_it_answers_its_order_first(echoing):
    assert echoing.answer() == {"hello": "there"}


def test_a_fork_speaks_over_its_own_socket(echoing):
    echoing.answer()
    one, other = echoing.start(), echoing.start()
    assert said(one, b"a\n") == b"a\n"
    assert said(other, b"x" * 300_000 + b"\n") == b"x" * 300_000 + b"\n"


def test_a_killed_fork_is_heard_as_silence_and_its_number_kept_until_the_end(echoing):
    echoing.answer()
    fork = echoing.start()
    said(fork, b"a\n")
    fork.kill()
    while not fork.is_heard():
        pass
    assert fork.line() is None
    while psutil.Process(fork.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    echoing.end(fork)
    assert not psutil.pid_exists(fork.pid)


def test_a_nursery_that_is_gone_is_told_in_one_sentence(echoing):
    echoing.answer()
    psutil.Process(echoing.pid).kill()
    with pytest.raises(RuntimeError, match="echoing does not answer"):
        echoing.start()
