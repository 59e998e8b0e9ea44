import os
import signal
import time
from pathlib import Path

import pytest

from megatron_rl.cluster.member import Member
from megatron_rl.cluster.settings import ClusterSettings
from megatron_rl.cluster.watch import RankFailure, told_apart
from tests.cluster.residents import Order
from tests.cluster.test_worker_group import batch

SHORT = ClusterSettings(start_s=120.0, step_s=2.0)
QUICK = ClusterSettings(heartbeat_s=2.0, start_s=120.0, step_s=60.0)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(group) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(is_alive(member.pid) for member in group.members):
        time.sleep(0.05)
    return not any(is_alive(member.pid) for member in group.members)


def test_the_first_failing_rank_s_traceback_stands_last_and_no_rank_is_left(start):
    group = start()
    with pytest.raises(RankFailure, match=r"rank 1 \(process .*failed first, in 'update'") as failure:
        group.update(batch(), Order("raise", rank=1))
    assert str(failure.value).endswith("ArithmeticError: the sky is green")
    assert "sky is green" in group.members[1].log.read_text()
    assert gone(group)
    group.close()


def test_a_rank_that_dies_while_others_wait_for_it_is_named(start):
    group = start()
    with pytest.raises(RankFailure, match=r"rank 1 \(process .* died$"):
        group.update(batch(), Order("die", rank=1, others_wait_s=100.0))
    assert "Aborted" in group.members[1].log.read_text()
    assert "in update" in group.members[0].log.read_text()
    assert gone(group)


def test_a_wait_that_takes_too_long_says_which_and_saves_where_every_rank_stands(start):
    group = start(SHORT)
    with pytest.raises(RankFailure, match=r"'update' was given 2 s and took longer on rank 1 "):
        group.update(batch(), Order("sleep", rank=1))
    assert "in stand_here" in group.members[1].log.read_text()
    assert gone(group)


def test_a_rank_that_hangs_is_missed_by_its_heartbeat(start):
    group = start(QUICK)
    os.kill(group.members[1].pid, signal.SIGSTOP)
    with pytest.raises(RankFailure, match=r"rank 1 .* missed two heartbeats of 2 s.* the driver waited for 'update'"):
        group.update(batch(), Order("nothing"))
    assert "Thread" in group.members[1].log.read_text()
    assert gone(group)


def test_a_driver_that_is_busy_elsewhere_is_interrupted_when_a_rank_is_lost(start):
    group = start(QUICK)
    os.kill(group.members[0].pid, signal.SIGKILL)
    with pytest.raises(RankFailure, match=r"rank 0 .* died"):
        time.sleep(60)


def test_ranks_learn_on_while_they_write_and_the_driver_hears_of_it_when_it_asks(start, tmp_path):
    group = start(ClusterSettings(start_s=120.0, step_s=3.0))
    saving = group.save(tmp_path / "sleep")
    assert group.update(batch(), Order("nothing")).steps == 1
    assert not saving.done()
    told = (
        r"^rank 1 of 2 \(process \d+ on \S+\) has not written its part of \S+/sleep within 3 s; rank 0 waits for it; "
    )
    with pytest.raises(RankFailure, match=told + rf"all stacks were saved in {tmp_path}/logs$"):
        saving.result(60)
    assert "in stand_here" in group.members[1].log.read_text()
    assert group.update(batch(), Order("nothing")).steps == 1


def test_ranks_that_have_not_written_are_told_apart_from_those_that_wait_for_them():
    members = [
        Member(rank=rank, actor=None, pid=40 + rank, machine="gpu-17", node_id="", door=("", 0), log=Path())
        for rank in range(4)
    ]
    third, last = "rank 2 of 4 (process 42 on gpu-17)", "rank 3 of 4 (process 43 on gpu-17)"
    at = dict.fromkeys(members, "")
    assert told_apart(members, at, 4, 300).startswith("'save' was given 300 s and took longer on rank 0 (process 40 ")
    told = told_apart(members, at | {members[3]: "/runs/a"}, 4, 300)
    assert told == f"{last} has not written its part of /runs/a within 300 s; ranks 0, 1, 2 wait for it"
    of_some = {members[0]: "", members[2]: "/runs/a", members[3]: "/runs/a"}  # rank 1 says nothing
    told = told_apart(members, of_some, 4, 300)
    assert told == f"{third} and {last} have not written their parts of /runs/a within 300 s; rank 0 waits for them"
    assert told_apart(members[3:], of_some, 4, 300) == f"{last} has not written its part of /runs/a within 300 s"


def test_a_disk_that_is_full_is_told_as_the_rank_met_it(start, tmp_path):
    group = start()
    with pytest.raises(OSError, match="No space left on device"):
        group.save(tmp_path / "full").result(60)
    group.save(tmp_path / "saved").result(60)


@pytest.mark.parametrize(("how", "said"), [("raise", "failed first, in 'save'.*sea is green$"), ("die", "died$")])
def test_a_rank_that_fails_while_it_writes_is_named_though_others_wait_for_it(start, tmp_path, how, said):
    group = start()
    with pytest.raises(RankFailure, match=rf"(?s)rank 1 \(process .*{said}"):
        group.save(tmp_path / how).result(60)
