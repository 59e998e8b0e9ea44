import os

import pytest

from megatron_rl.reshard.ring import memory_folder
from tools import bench_sync


def test_every_way_is_timed_beside_a_plain_copy_and_ours_moves_half_of_what_gathering_does(capsys, monkeypatch):
    monkeypatch.setattr(bench_sync, "REPEATS", 1)
    arguments = ["--hidden", "256", "--layers", "2", "--slot-bytes", "1048576", "--verify", "full"]
    assert bench_sync.main(arguments) == 0
    heading, *rows, last = capsys.readouterr().out.splitlines()
    moved = [float(row.split(" GB moved")[0].split()[-1]) for row in rows]
    assert heading.startswith(f"{moved[0]:.3f} GB of weights, bound {moved[0]:.3f} GB")
    assert moved[1] == moved[2] == moved[0]
    assert moved[3] == pytest.approx(2 * moved[0], rel=0.02)
    assert all(float(row.split()[-1]) > 0 for row in rows)
    assert last.startswith("gathering takes ")
    assert not list(memory_folder().glob(f"bench-{os.getpid()}-*"))
