import os
import signal
import threading
import time
from types import SimpleNamespace

from megatron_rl.cluster import heartbeat as own
from megatron_rl.cluster.heartbeat import Heartbeat
from tests.cluster.residents import Order
from tests.cluster.test_worker_group import batch


def test_ranks_that_answer_are_left_alone_and_one_that_is_gone_is_told_once(start):
    group = start()
    told, heard = [], threading.Event()

    def lost(reason: str) -> None:
        told.append(reason)
        heard.set()

    group.watch._heartbeat.close()  # one listener at a time, so that this one is the one that finds out
    heartbeat = Heartbeat(group.members, 1.0, lost)
    group.update(batch(), Order("nothing"))
    assert not heard.wait(3.0)
    os.kill(group.members[1].pid, signal.SIGKILL)
    assert heard.wait(30.0)
    heartbeat.close()
    assert [reason.split(" (")[0] for reason in told] == ["rank 1"]
    assert "died" in told[0]


def test_silence_counts_only_once_the_ranks_have_started(start):
    group = start()
    told, heard = [], threading.Event()

    def lost(reason: str) -> None:
        told.append(reason)
        heard.set()

    group.watch._heartbeat.close()
    os.kill(group.members[1].pid, signal.SIGSTOP)
    heartbeat = Heartbeat(group.members[1:], 0.5, lost)
    assert not heard.wait(3.0)
    heartbeat.expect_answers()
    assert heard.wait(30.0)
    heartbeat.close()
    os.kill(group.members[1].pid, signal.SIGCONT)
    assert "missed two heartbeats of 0.5 s" in told[0]


def test_nobody_is_missed_for_the_time_that_the_whole_machine_stood_still(monkeypatch):
    stood_s, told = [0.0], threading.Event()
    clock, unanswered = time.monotonic, SimpleNamespace(wait=lambda refs, **_: ([], refs))
    monkeypatch.setattr(own, "time", SimpleNamespace(monotonic=lambda: clock() + stood_s[0]))
    monkeypatch.setattr(own, "ray", unanswered)
    deaf = SimpleNamespace(actor=SimpleNamespace(beat=SimpleNamespace(remote=lambda: "asked")))
    heartbeat = Heartbeat([deaf], 1.0, lambda _: told.set())
    heartbeat.expect_answers()
    stood_s[0] = 3600.0
    assert not told.wait(0.5)
    assert told.wait(30.0)
    heartbeat.close()


def test_what_else_it_looks_at_is_told_as_a_lost_rank_is(monkeypatch):
    monkeypatch.setattr(own, "ray", SimpleNamespace(wait=lambda refs, **_: ([], refs)))
    told, heard, losses = [], threading.Event(), iter(("", "", "the control process died"))
    heartbeat = Heartbeat([], 0.1, lambda reason: (told.append(reason), heard.set()))
    heartbeat.look_also(lambda: next(losses))
    assert heard.wait(30.0)
    heartbeat.close()
    assert told == ["the control process died"]
