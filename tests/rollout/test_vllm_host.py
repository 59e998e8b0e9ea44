import json
import os
from dataclasses import asdict
from pathlib import Path

from megatron_rl.rollout.vllm_group import Group
from megatron_rl.rollout.vllm_host import Here, Post, end
from tests.rollout.scripted import order, post


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


def test_a_process_started_here_speaks_over_its_line_and_is_ended_with_it(tmp_path):
    here = Here()
    process, line = here.start("a group", post(tmp_path).launch())
    line.sendall(json.dumps(asdict(order(tmp_path))).encode() + b"\n")
    with line.makefile() as said:
        assert json.loads(said.readline()) == {"said": "ready"}
    assert process.poll() is None
    here.end(process, end)
    assert process.returncode == -9
    line.close()
