"""Every recipe runs: the same YAML, its model shrunk to two layers, two steps, on a CPU."""

import json

import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import CORRECT, REWARD
from megatron_rl.spec.load import load
from tools.tiny_recipe import MODELS, run, shrink

RECIPES = sorted(path for path in MODELS.parent.glob("*/*.yaml") if path.parent.name != "median_of_means")
EXPERTS = (pytest.mark.vllm, pytest.mark.slow)
"""Marks of the recipe whose tiny run is vLLM's too, since the embedded engine writes with dense models only."""


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


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, marks=EXPERTS if "A3B" in path.parent.name else ()) for path in RECIPES],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_it_trains_two_steps_that_are_right_now_and_then(recipe, tmp_path):
    path = shrink(recipe, tmp_path)
    same(path, recipe)
    folder = run(path)
    assert (folder / "checkpoints" / "latest").read_text().split()[0] == "step_000002"
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(point["kind"] == "evaluation" for point in points) >= 1
    judged = [Batch.read_parquet(folder / "rollouts" / f"step_{step:06d}.parquet") for step in (1, 2)]
    assert 0 < sum(float(batch.numbers(CORRECT).double().mean()) for batch in judged) / 2 < 1
    assert all(batch.numbers(REWARD).isfinite().all() for batch in judged)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_is_at_most_twenty_five_lines_and_extends_a_shipped_configuration(recipe):
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 25
    assert len(load(recipe).files) >= 3
