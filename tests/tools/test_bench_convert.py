import re

from tools import bench_convert


def test_each_way_at_each_layout_stands_beside_a_plain_copy_with_its_memory(capsys, monkeypatch, tmp_path):
    smaller = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 192, "vocab_size": 515}
    monkeypatch.setattr(bench_convert, "CONFIG", {**bench_convert.CONFIG, **smaller, "num_key_value_heads": 4})
    monkeypatch.setattr(bench_convert, "STATES", {"at once": 0.0})
    monkeypatch.setattr(bench_convert, "LAYOUTS", bench_convert.LAYOUTS[1:])
    assert bench_convert.main(["--gigabytes", "0.001", "--rounds", "1", "--room", str(tmp_path)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading == "0.00 GB, median of 1 rounds"
    assert [row.split(":")[0] for row in rows[:2]] == ["at once, tp4 pp2 to megatron", "at once, tp4 pp2 back"]
    assert all(re.search(r"[\d.]+ GB/s beside cp's [\d.]+, [\d.]+ of it$", row) for row in rows[:2])
    peak, imports = map(int, re.search(r"peak memory (\d+) MiB, of it imports (\d+) MiB", rows[2]).groups())
    assert peak >= imports > 0
    assert not list(tmp_path.iterdir())
