import re

from tools import bench_convert


def test_each_way_at_each_layout_stands_beside_a_plain_copy_with_its_memory(capsys, monkeypatch, tmp_path):
    smaller = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 192, "vocab_size": 515}
    monkeypatch.setattr(bench_convert, "CONFIG", {**bench_convert.CONFIG, **smaller, "num_key_value_heads": 4})
    monkeypatch.setattr(bench_convert, "PAUSE_S", 0.0)
    monkeypatch.setattr(bench_convert, "LAYOUTS", bench_convert.LAYOUTS[1:])
    assert bench_convert.main(["--gigabytes", "0.001", "--rounds", "1", "--room", str(tmp_path)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading == "0.00 GB, median of 1 rounds"
    assert [row.split(":")[0] for row in rows] == ["tp4 pp2 to megatron", "tp4 pp2 back"]
    for row in rows:
        found = re.search(r"GB/s beside cp's .*; peak memory (\d+) MiB, of it imports (\d+) MiB", row)
        assert int(found[1]) >= int(found[2]) > 0
    assert not list(tmp_path.iterdir())
