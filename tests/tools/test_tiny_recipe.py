"""Every recipe runs: the same YAML, its model shrunk to two layers, two steps, on a CPU."""

import json
import sys

import pytest
import yaml

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, REWARD
from megatron_rl.spec.load import load
from tools.tiny_recipe import MODELS, main, run, shrink

RECIPES = sorted(path for path in MODELS.parent.glob("*/*.yaml") if path.parent.name != "median_of_means")
(EXPERTS,) = (path for path in RECIPES if path.parent.name == "Qwen3-30B-A3B")
FLOAT32 = {"actor": {"precision": {"compute": "fp32"}}}


def same(path, recipe):
    """What a tiny run shares with its recipe."""
    tiny, full = load(path), load(recipe)
    for name in ("collect", "learn"):
        assert [(part.name, part.values) for part in tiny.chains[name]] == [
            (part.name, part.values) for part in full.chains[name]
        ]
    for name in ("objective", "reward"):
        assert (tiny.choices[name].name, tiny.choices[name].values) == (
            full.choices[name].name,
            full.choices[name].values,
        )
    for key in ("optimizer", "recompute", "reference"):
        assert tiny.settings["actor"].values[key] == full.settings["actor"].values[key]


def but(path, **changes):
    """The tiny run with these changes; its points."""
    changed = path.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({"extends": str(path), **changes}))
    return points(run(changed))


def points(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_trains_two_steps_that_are_right_now_and_then(recipe, tmp_path):
    path = shrink(recipe, tmp_path)
    same(path, recipe)
    folder = run(path)
    assert (folder / "checkpoints" / "latest").read_text().split()[0] == "step_000002"
    assert sum(point["kind"] == "evaluation" for point in points(folder)) >= 1
    judged = [Batch.read_parquet(folder / "rollouts" / f"step_{step:06d}.parquet") for step in (1, 2)]
    assert 0 < sum(float(batch.numbers(CORRECT).double().mean()) for batch in judged) / 2 < 1
    assert all(batch.numbers(REWARD).isfinite().all() for batch in judged)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_mixture_in_float32_is_the_same_to_the_engine_and_to_the_actor(tmp_path, normalised):
    path = shrink(EXPERTS, tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["norm_topk_prob"]
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "norm_topk_prob": normalised}))
    short = {"steps": 1, "save_every": 0, "evaluate_every": 0}
    (step,) = [point for point in but(path, schedule=short, **FLOAT32) if point["kind"] == "step"]
    assert step["parity/max"] <= 1e-5


@pytest.mark.vllm
@pytest.mark.slow
def test_a_mixture_learns_through_vllm_as_well(tmp_path):
    path = shrink(EXPERTS, tmp_path)
    # In 16 bits two programs send tokens of random weights to other experts.
    served = but(path, rollout={"vllm": {"tp": 1, "replicas": 1, "context": 256}}, **FLOAT32)
    assert [point["parity/max"] <= 1e-4 for point in served if point["kind"] == "step"] == [True, True]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_at_most_twenty_five_lines_and_extends_a_shipped_configuration(recipe):
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 25
    assert len(load(recipe).files) >= 3


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("extends: nowhere.yaml", "'extends' names 'nowhere.yaml'"),
        ("extends: grpo.yaml\nreward: exact", "the reward is 'exact', and tiny answers can be written for math"),
        ("extends: grpo.yaml\nmodel: {folder: models/Other-9B}", "examples/models has no config.json of 'Other-9B'"),
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, recipe, said):
    (tmp_path / "recipe.yaml").write_text(recipe)
    monkeypatch.setattr(sys, "argv", ["tiny_recipe.py", str(tmp_path / "recipe.yaml"), str(tmp_path / "tiny")])
    assert main() == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists()
