import argparse
import json

import pytest

from megatron_rl.commands.convert import add_arguments, run
from tests.fakes.tiny_models import tiny_folder


def converted(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("command") / "source", "llama", num_hidden_layers=4)


def test_the_source_decides_the_direction_and_a_line_says_what_was_done(source, tmp_path, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert converted(source, there, "--tp", 2, "--pp", 2, "--stage-layers", "1+3") == 0
    assert converted(there, back) == 0
    assert converted("--verify", back) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "-> megatron tp2 dp1 pp2: 39 tensors, 136384 elements each once, 545536 bytes" in lines[0]
    assert "peak memory" in lines[0]
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_what_cannot_be_is_one_line_and_exit_code_two(source, tmp_path, capsys):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(json.dumps({"model_type": "lama"}))
    cases = {
        (source,): "a conversion needs a target",
        (source, source): "exists; name a folder that does not",
        (source, tmp_path / "target", "--tp", 3): "do not divide over actor.tp = 3",
        (strange, tmp_path / "target"): "the nearest is 'llama'.",
        (tmp_path / "nowhere", tmp_path / "target"): "config.json does not exist",
        (source, tmp_path / "target", "--like", source): "has a config of its own",
        ("--verify", source): "only what was converted has a certificate",
    }
    for arguments, reason in cases.items():
        assert converted(*arguments) == 2
        said = capsys.readouterr().err
        assert reason in said
        assert said.count("\n") == 1


def test_a_tampered_folder_is_exit_code_one(source, tmp_path, capsys):
    there = tmp_path / "there"
    assert converted(source, there) == 0
    content = json.loads((there / "conversion.json").read_text())
    content["tensors"]["model.norm.weight"]["sha256"] = "0" * 64
    (there / "conversion.json").write_text(json.dumps(content))
    assert converted("--verify", there) == 1
    assert "holds 'model.norm.weight' with other bytes" in capsys.readouterr().err
