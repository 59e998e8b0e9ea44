import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from megatron_rl.answers import Question, Score
from megatron_rl.rewards.exact import Exact
from megatron_rl.rewards.function import Function
from megatron_rl.rewards.grader import graded, reward_of


def started(order):
    """The grader's process, our end of its socket and its first word."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_rl.rewards.grader", str(theirs.fileno())], pass_fds=(theirs.fileno(),)
        )
    ours.sendall(json.dumps({"memory_bytes": 1 << 30, "cpu_s": 5, **order}).encode() + b"\n")
    return process, ours, json.loads(ours.makefile("rb").readline())


def test_a_class_is_built_with_its_fields_and_a_function_is_wrapped():
    assert reward_of("megatron_rl.rewards.exact:Exact", {"after": "#"}) == Exact(after="#")
    path = "tests.rewards.own_rewards:compute_score"
    assert reward_of(path, {}) == Function(path=path)


def test_it_says_why_a_reward_cannot_be_built():
    process, ours, said = started({"target": "megatron_rl.rewards.exact:Exact", "given": {"after": 3}})
    with process, ours:
        assert "after" in said["error"]


def test_a_fork_answers_line_by_line_and_is_gone_after_its_end():
    process, ours, said = started({"target": "megatron_rl.rewards.exact:Exact", "given": {}})
    with process, ours:
        assert said == {"ready": True}
        mine, forks = socket.socketpair()
        socket.send_fds(ours, [b'{"command": "start"}\n'], [forks.fileno()])
        forks.close()
        lines, commands = mine.makefile("rb"), ours.makefile("rb")
        pid = json.loads(commands.readline())["pid"]
        for response, correct in (("4", 1), ("5", 0)):
            mine.sendall(Question(response=response, answer="4").line())
            answer = json.loads(lines.readline())
            assert answer["correct"] == correct
            assert not answer["last"]
        assert os.getpgid(pid) == pid
        for number in (signal.SIGTERM, signal.SIGUSR1):
            for each in (process.pid, pid):
                os.kill(each, number)
        mine.sendall(Question(response="4", answer="4").line())
        assert json.loads(lines.readline())["correct"] == 1
        ours.sendall(b'{"command": "end", "pid": %d}\n' % pid)
        assert json.loads(commands.readline()) == {"ended": pid}
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        mine.close()
        ours.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "score",
    [None, 1.0, Score(reward=float("inf"), correct=0, extracted=None), Score(reward=1, correct=2, extracted="")],
)
def test_what_is_no_score_is_an_error(score):
    answer, _ = graded(lambda _: score, Question(response="", answer="").line())
    assert "finite" in answer["error"]
