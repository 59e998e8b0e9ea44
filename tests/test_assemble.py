import importlib.util
import shutil

import pytest
from transformers import Qwen3MoeConfig

from megatron_rl.assemble import assemble, environment, plain_difference
from megatron_rl.data.tiny_model import tiny_config
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


def test_an_engine_that_computes_no_experts_is_not_given_any(data, tmp_path):  # noqa: F811
    folder = tmp_path / "mixture"
    shutil.copytree(data / "model", folder)
    sizes = {name: value for name, value in tiny_config().to_dict().items() if name != "model_type"}
    Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32).save_pretrained(folder)
    with pytest.raises(SpecError, match=r"the embedded engine computes no experts, which .*mixture has; use 'vllm'"):
        assemble(spec(data, tmp_path, f"model.folder={folder}"))


def test_held_out_prompts_are_not_asked_at_a_temperature_that_vllm_has_not(data, tmp_path, monkeypatch):  # noqa: F811
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "vllm" else found(name))
    monkeypatch.setattr(files, "OPTIONAL", {})
    chosen = ("rollout=vllm", "evaluation.temperature=2.5")
    with pytest.raises(SpecError, match=r"evaluation\.temperature: vLLM draws .* not at 2\.5; choose another or"):
        assemble(spec(data, tmp_path, *chosen))
