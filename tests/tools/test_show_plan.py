import json
import os
import subprocess
import sys

import pytest

from tools import show_plan

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 300,
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_405b_plan_is_printed_with_its_bytes_bound_and_ratio(capsys):
    assert show_plan.main(["--preset", "llama-3.1-405b", "--copies", "3"]) == 0
    printed = capsys.readouterr().out
    row = dict(zip(cells(printed.splitlines()[0]), cells(printed.splitlines()[1]), strict=True))
    assert (row["GPUs"], row["bytes"], row["bound"], row["ratio"]) == ("1024", "97.41 TB", "97.41 TB", "1.000")
    assert row["gathered"] == "824.69 TB"
    assert printed.count("\n0  ") >= 3


WITHIN_A_GIBIBYTE = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from tools import show_plan
raise SystemExit(show_plan.main(["--preset", "llama-3.1-405b", "--copies", "0"]))
"""


def test_the_405b_plan_is_made_by_a_process_that_can_have_no_more_than_a_gibibyte():
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", WITHIN_A_GIBIBYTE], env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "llama-3.1-405b" in done.stdout


def test_the_table_compares_at_least_seven_layouts_and_none_moves_more_than_the_bound(capsys):
    assert show_plan.main([]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) >= 7
    ratio = cells(heading).index("ratio")
    assert {cells(row)[ratio] for row in rows} == {"1.000"}


def test_any_two_layouts_of_a_config_are_planned(config, capsys):
    layouts = ["--source", "megatron:tp=2,pp=2,layers=1+3", "--target", "hf:", "--placement", "split"]
    assert show_plan.main([config, *layouts]) == 0
    printed = capsys.readouterr().out
    assert "megatron tp2 dp1 pp2" in printed
    assert "decoder.layers.0.self_attention.linear_qkv.weight[0:16, 0:64]" in printed


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("sglang:tp=2", "is of kind 'sglang', but the kinds are megatron, vllm, hf"),
        ("vllm:pp=2", "sets 'pp', but vllm knows replicas, tp"),
        ("vllm:tp=-2", "says tp=-2, which should be a whole number above 0"),
        ("hf:layers=3", "sets 'layers', but only megatron has stages"),
        ("megatron:tp", "says tp=, which should be a whole number"),
        ("megatron:tp=2,tp=4", "sets something twice"),
        ("megatron:pp=2,layers=4+", "should list its layers as in layers=7+8+7"),
        ("vllm:tp=16", "8 attention heads do not divide over 16"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_in_a_sentence(config, layout, reason, capsys):
    assert show_plan.main([config, "--target", layout]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("said", ["[]", "null", "[" * 100_000, "{", "\ufeff{}"])
def test_a_config_that_is_no_object_is_refused_in_a_sentence(said, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(said, encoding="utf-8")
    assert show_plan.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err
