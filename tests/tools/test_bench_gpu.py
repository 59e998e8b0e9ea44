import json

import pytest
import torch

from tests import ranks
from tools import bench_gpu


def tiny(path: str) -> int:
    from megatron_rl.actor import groups

    # The benchmark joins by itself.
    groups.leave()
    code = bench_gpu.main(["--tiny", "--json", path])
    groups.join_alone()
    return code


def test_the_tiny_benchmark_measures_products_attention_and_an_update(tmp_path):
    path = tmp_path / "bench.json"
    assert ranks.run(tiny, world=1, path=str(path)) == [0]
    lines = {line["what"]: line for line in json.loads(path.read_text())}
    assert {"matrix product, bf16", "attention, ours", "attention, run by run", "actor, bf16"} <= lines.keys()
    actor = lines["actor, bf16"]
    assert 0 < actor["mfu_of_bf16"] < 1
    assert actor["score_tokens_per_s"] > actor["tokens_per_s"]


def test_lengths_are_long_tailed_and_fill_the_update():
    lengths = bench_gpu.lengths_of(100_000, 8192)
    assert 100_000 <= sum(lengths) < 108_192
    assert max(lengths) > 4 * sorted(lengths)[len(lengths) // 2]
    assert max(lengths) <= 8192


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_without_a_gpu_only_the_tiny_benchmark_runs(capsys):
    assert bench_gpu.main([]) == 2
    assert "no CUDA device; add --tiny" in capsys.readouterr().err
