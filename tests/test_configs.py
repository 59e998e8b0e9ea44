"""Every shipped configuration trains, and goes on after a stop as if there had been none."""

import json
from pathlib import Path

import pytest

from megatron_rl import launch
from megatron_rl.spec.load import SHIPPED, load
from tests.killing import kill_after
from tests.test_launch import data, digest, rollouts  # noqa: F401  # data is a fixture

SMALL = {
    "uniform": ("sampler.uniform.prompts=4", "sampler.uniform.samples=4"),
    "screening": ("sampler={screening: {prompts: 2, screened: 6, screen: 2, more: 2}}",),
    "prioritised": ("sampler.prioritised.prompts=4", "sampler.prioritised.samples=4"),
}
CHANGES = {
    "grpo_asynchronous": ("collect=[{generate: {stretch: 3}}, judge]",),
    "ppo": ("learn=[old_logprobs, critic.value, generalised_advantage, {critic.update: {warmup: 1}}]",),
    "a_star_po": ("sampler.uniform.samples=1",),
    "dapo": ("sampler.uniform.wave=6", "schedule.max_waves=30", "objective.clipped.dual_clip=10.0"),
}

TOLD = {
    "jspo": "shrinkage/ weight_mean weight_min weight_max noise_mean noise_min noise_max "
    "spread_mean spread_min spread_max constant_share square_ratio",
    "a_star_po": "optimal_value/ mean advantage_mean advantage_square unsolved_share reference_rollouts",
    "speed": "screen/ accepted_share screened continued discarded pending accepted_mean continued_mean",
    "spec_rl": "drafts/ reused_share whole_share cut_mean cut_p10 cut_p50 cut_p90 log_ratio_mean rejection_mean "
    "verified_tokens overlap distinct_share",
    "spec_rl_corrected": "drafts/ weight_mean",
    "pspo": "prioritised/ effective_prompts at_floor_share",
    "ppo": "critic/ loss squared_error value grad_norm skipped",
    "remax": "greedy_baseline/ mean tokens failed",
    "reinforce_pp": "returns/ mean deviation",
    "dapo": "keep_mixed/ kept_share",
    "grpo_asynchronous": "ahead/ waiting collect_seconds hidden_seconds",
}
"""What runs of each method tell of it, beside what every run tells."""
ALSO = {
    "a_star_po": (
        *("loss", "kl_reference", "scaled_log_ratio", "scaled_log_ratio_square"),
        *("values/rollouts", "values/left_out_share"),
    ),
    "speed": (
        "buffer/waiting",
        "buffer/trained",
        "buffer/age_mean",
        "buffer/age_max",
        "buffer/stale",
        "screening/expired",
        "buffer/filtered",
        "screening/drawn",
        "screening/failed",
        "correction",
    ),
    "grpo_asynchronous": ("stretch/begun", "stretch/resumed_share", "stretch/versions_max", "correction"),
    "pspo": ("importance_weight/raw_max", "importance_weight/mean", "smoothed_stats/drift_mean"),
    "ppo": ("generalised_advantage/explained",),
    "dapo": ("buffer/pushed", "buffer/filtered", "overlong_penalty/mean"),
}


def small(config: Path, data: Path, runs: Path, *more: str):  # noqa: F811
    return load(config, shrunk(config, data, runs, *more))


def shrunk(config: Path, data: Path, runs: Path, *more: str) -> tuple[str, ...]:  # noqa: F811
    """The overrides that make a configuration small enough for seconds."""
    name = config.stem
    sampler = load(config, ("extends=base/toy.yaml",)).choices["sampler"].name
    written = [
        "extends=base/toy.yaml",
        f"run.folder={runs}",
        f"model.folder={data / 'model'}",
        f"data.train=[{data / 'train.parquet'}]",
        "data.evaluate=[]",
        "schedule.steps=4",
        "schedule.save_every=2",
        "sampling.max_tokens=8",
        "reward=tests.fakes.lucky:score",
        "judge.processes=1",
        "judge.deadline_s=60",
        "actor.update.steps=1",
        "actor.update.microbatch_tokens=2048",
    ]
    return (*written, *SMALL[sampler], *CHANGES.get(name, ()), *more)


def with_values(config: Path, data: Path, folder: Path, *more: str) -> tuple[str, ...]:  # noqa: F811
    """The same changes; for the method that reads values, they are made first and named."""
    if config.stem != "a_star_po":
        return more
    values = folder / "values.parquet"
    more = (*more, f"data.values={values}")
    launch.values(small(config, data, folder / "values", *more), 4, values)
    return more


def halves(config: Path, folder: Path) -> tuple[Path, Path]:
    """The folders of the run without a stop and of the one with."""
    name = str(load(config, ("extends=base/toy.yaml",)).settings["run"].values["name"])
    return folder / "straight" / name, folder / "broken" / name


def assert_same(straight: Path, broken: Path, steps: int) -> None:
    """To the bit: the last checkpoint, and the rollouts of every step."""
    assert digest(straight, steps) == digest(broken, steps)
    for step in range(1, steps + 1):
        assert rollouts(straight, step).table.equals(rollouts(broken, step).table)


def trained_though_stopped(config: Path, data: Path, folder: Path) -> Path:  # noqa: F811
    """The folder of a run of four steps, from which one that was stopped after two does not differ in a bit."""
    more = with_values(config, data, folder)
    launch.train(small(config, data, folder / "straight", *more))
    launch.train(small(config, data, folder / "broken", *more, "schedule.steps=2"))
    launch.train(small(config, data, folder / "broken", *more))
    straight, broken = halves(config, folder)
    assert_same(straight, broken, 4)
    return straight


def promised(name: str) -> set[str]:
    prefix, *names = TOLD.get(name, "").split() or [""]
    return {*(prefix + each for each in names), *ALSO.get(name, ())}


def told(run: Path) -> set[str]:
    """The names of all numbers that the steps of a run told."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name for point in points if point["kind"] == "step" for name in point}


CONFIGS = sorted(SHIPPED.glob("*.yaml"))
ABLE_TO_LAG = [path for path in CONFIGS if path.stem != "spec_rl_corrected"]
"""All but the one whose drafts the actor scores while rollouts are written."""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_is_at_most_twenty_five_lines(config):
    assert len(config.read_text().splitlines()) <= 25


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_what_its_runs_tell_stands_in_the_documentation(config):
    page = (SHIPPED.parent / "docs" / "metrics.md").read_text()
    assert [name for name in sorted(promised(config.stem)) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_trains_and_a_stop_changes_nothing(config, data, tmp_path):  # noqa: F811
    assert promised(config.stem) <= told(trained_though_stopped(config, data, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_eight_steps_are_three_and_five_with_a_kill_between(config, data, tmp_path):  # noqa: F811
    more = with_values(config, data, tmp_path, "schedule.steps=8", "schedule.save_every=3")
    straight, broken = halves(config, tmp_path)
    launch.train(small(config, data, tmp_path / "straight", *more))
    beside = (*more, "schedule.save_async=true")
    kill_after(3, config, shrunk(config, data, tmp_path / "broken", *beside))
    launch.train(small(config, data, tmp_path / "broken", *beside))
    assert_same(straight, broken, 8)


@pytest.mark.slow
@pytest.mark.parametrize("config", ABLE_TO_LAG, ids=lambda path: path.stem)
def test_eight_steps_are_three_and_five_with_rollouts_a_step_ahead(config, data, tmp_path):  # noqa: F811
    more = with_values(config, data, tmp_path, "schedule.steps=8", "schedule.save_every=3", "schedule.ahead=1")
    if load(config, ("extends=base/toy.yaml",)).choices["objective"].name == "clipped":
        more = (*more, "objective.clipped.truncate=2.0")
    straight, broken = halves(config, tmp_path)
    launch.train(small(config, data, tmp_path / "straight", *more))
    launch.train(small(config, data, tmp_path / "broken", *more, "schedule.steps=3"))
    launch.train(small(config, data, tmp_path / "broken", *more))
    assert_same(straight, broken, 8)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs_on_the_quickstarts_task_with_another_base_alone(path):
    toy, moved = load(SHIPPED / "base" / "toy.yaml"), load(path, ("extends=base/toy.yaml",))
    assert moved.settings["model"].values["folder"] == toy.settings["model"].values["folder"]
    assert moved.choices["rollout"].name == "embedded"
