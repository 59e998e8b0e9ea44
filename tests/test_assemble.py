import importlib.util
import shutil

import pytest
from transformers import Qwen3MoeConfig

from megatron_rl.assemble import (
    assemble,
    blueprint_of,
    close,
    environment,
    plain_difference,
    prompts_of,
    value_fingerprint,
)
from megatron_rl.data.prompts import DataSettings
from megatron_rl.data.tiny_model import tiny_config
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.spec import files
from megatron_rl.spec.schema import SpecError
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_differences_are_named_by_their_keys():
    ours = {"run": {"name": "a", "seed": 0}, "steps": 1}
    assert plain_difference(ours, {"run": {"name": "b", "seed": 0}, "steps": 2, "new": 1}) == [
        "new",
        "run.name",
        "steps",
    ]


def test_the_environment_lists_versions_and_absences():
    found = environment()
    assert found["megatron-core"] == "0.16.1"
    assert all(found.values())


def test_an_engine_of_ours_is_told_how_a_token_finds_its_experts():
    sizes = {name: value for name, value in tiny_config().to_dict().items() if name != "model_type"}
    mixture = Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)
    blueprints = [blueprint_of(config.to_dict()) for config in (mixture, tiny_config())]
    assert [(each.experts_per_token, each.experts_normalised) for each in blueprints] == [(2, True), (0, False)]


def test_held_out_prompts_are_not_asked_at_a_temperature_that_vllm_has_not(data, tmp_path, monkeypatch):  # noqa: F811
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "vllm" else found(name))
    monkeypatch.setattr(files, "OPTIONAL", {})
    chosen = ("rollout=vllm", "evaluation.temperature=2.5")
    with pytest.raises(SpecError, match=r"evaluation\.temperature: vLLM draws .* not at 2\.5; choose another or"):
        assemble(spec(data, tmp_path, *chosen))


def test_whole_groups_wait_no_longer_than_their_sampler_says(data, tmp_path):  # noqa: F811
    screened = ("sampler={screening: {screen: 2, more: 2}}", "collect=[generate, judge, screen]")
    for chosen, age in ((("sampler.uniform.max_age=0",), 0), (screened, 8)):
        run = assemble(spec(data, tmp_path, *chosen))
        try:
            assert run.buffer.max_age == age
        finally:
            close(run, "finished")


def test_values_belong_to_what_a_model_holds_wherever_it_lies(data, tmp_path):  # noqa: F811
    moved = tmp_path / "moved"
    shutil.copytree(data / "model", moved)
    here, there = (value_fingerprint(spec(data, tmp_path, f"model.folder={at}")) for at in (data / "model", moved))
    assert here.pop("model") != there.pop("model")
    assert here == there
    (moved / "tokenizer_config.json").write_text("{}")
    assert value_fingerprint(spec(data, tmp_path, f"model.folder={moved}"))["tokenizer"] != here["tokenizer"]


def test_a_run_whose_longest_response_fits_no_micro_batch_does_not_begin(data, tmp_path):  # noqa: F811
    room = "sampling.max_tokens=40"
    with pytest.raises(
        SpecError, match=r"microbatch_tokens is 16, but the longest prompt and its response may have \d+"
    ):
        assemble(spec(data, tmp_path, room, "actor.update.microbatch_tokens=16"))
    close(assemble(spec(data, tmp_path, room, "actor.update.microbatch_tokens=64")), "finished")


def test_rows_that_are_left_out_are_told(data, tmp_path, capsys):  # noqa: F811
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1 + 1", "label": "2"}\n{"prompt": "1 + 2"}\n')
    settings = DataSettings(train=(path,))
    tokenizer = load_tokenizer(data / "model")
    assert len(prompts_of("train", settings.train, tokenizer, settings)) == 1
    said = capsys.readouterr().err
    assert said.startswith("data.train: 1 prompts, left out: 1 malformed; the first malformed: ")
    assert "rows.jsonl row 2: has the fields ['prompt']" in said
