import json
import os
from pathlib import Path

import pytest

from megatron_rl.rollout.vllm_group import Group, GroupLost, Post
from tests.rollout.scripted import order, post


@pytest.fixture
def group(tmp_path):
    started = Group.start(post(tmp_path), order(tmp_path))
    yield started
    started.kill()


def test_a_group_is_started_with_its_order_and_answers_commands(group):
    assert group.wait("ready", 30) == {"said": "ready"}
    group.say({"do": "receive", "version": 4})
    assert group.wait("received", 30)["reports"][0]["version"] == 4


def test_a_group_that_dies_is_explained_by_the_end_of_its_log(tmp_path):
    group = Group.start(post(tmp_path), order(tmp_path, "never starts"))
    with pytest.raises(GroupLost, match=r"(?s)vLLM group 0 died; its log .*ends with:\nno such model"):
        group.wait("ready", 30)
    group.kill()


def test_a_group_is_waited_for_no_longer_than_asked_and_what_it_cannot_do_is_told(tmp_path, group):
    with pytest.raises(GroupLost, match=r"did not say 'received' within 0.05 s"):
        group.wait("received", 0.05)
    other = Group.start(post(tmp_path, 1), order(tmp_path, "receives nothing"))
    other.say({"do": "receive", "version": 1})
    with pytest.raises(GroupLost, match="vLLM group 1 could not receive: TransferError: digest is 1 where 2 was due"):
        other.wait("received", 30)
    other.kill()


def test_a_closed_group_ends_by_itself_and_a_killed_one_at_once(tmp_path, group):
    group.wait("ready", 30)
    group.close()
    assert group.process.returncode == 0
    other = Group.start(post(tmp_path, 1), order(tmp_path))
    other.kill()
    assert other.process.returncode == -9


def test_a_killed_group_leaves_no_shared_memory(tmp_path, monkeypatch):
    held = Path("/dev/shm/vllm_dist_test-" + str(os.getpid()))
    held.write_bytes(b"0" * 4096)
    script = tmp_path / "holder.py"
    script.write_text(
        "import mmap, socket, sys, time\n"
        f"file = open({str(held)!r}, 'r+b')\n"
        "kept = mmap.mmap(file.fileno(), 4096)\n"
        "wire = socket.socket(fileno=int(sys.argv[1]))\n"
        'wire.sendall(b\'{"said": "ready"}\\n\')\n'
        "time.sleep(3600)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    group = Group.start(Post(**{**vars(post(tmp_path)), "module": "holder"}), order(tmp_path))
    group.wait("ready", 30)
    group.kill()
    assert not held.exists()


def test_a_group_on_a_cpu_is_bound_to_no_core_and_one_on_gpus_sees_its_own(tmp_path):
    here = post(tmp_path).environment()
    assert (here["VLLM_CPU_OMP_THREADS_BIND"], here["OMP_NUM_THREADS"]) == ("nobind", "1")
    there = Post(**{**vars(post(tmp_path)), "gpus": (2, 3)}).environment()
    assert there["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert json.dumps(here)
