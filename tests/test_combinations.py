"""The five methods in pairs: those that fit train and resume to the bit; the others are refused, with the reason."""

from pathlib import Path

import pytest
import yaml

from megatron_rl import launch
from megatron_rl.ideas import read_ideas
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError
from tests.killing import kill_after
from tests.test_launch import data, digest, rollouts  # noqa: F401  # data is a fixture

METHODS = ("jspo", "a_star_po", "speed", "spec_rl", "pspo")
UNIFORM = {"uniform": {"prompts": 4, "samples": 4}}
PRIORITISED = {"prioritised": {"prompts": 4, "samples": 4}}
SCREENING = {"screening": {"prompts": 2, "screened": 6, "screen": 2, "more": 2}}


def chosen(*methods: str, priorities: bool = False) -> dict[str, object]:
    """What each method adds to sampler, chains and objective; TIS goes with all. `priorities` is half of PSPO."""
    draws = PRIORITISED if priorities or "pspo" in methods else UNIFORM
    sampler = SCREENING if "speed" in methods else draws
    regresses = "a_star_po" in methods
    if regresses:
        sampler = {name: {**given, "samples": 1} if "samples" in given else given for name, given in sampler.items()}
    drafts = "spec_rl" in methods
    baselines = [
        name for method, name in (("jspo", "shrinkage_baseline"), ("pspo", "smoothed_stats")) if method in methods
    ]
    plain = [] if regresses or baselines else ["leave_one_out_baseline"]
    targets = ["optimal_value", "reference_logprobs"] if regresses else []
    weights = ["importance_weight"] if sampler.keys() & PRIORITISED.keys() else []
    advantage = [] if regresses else ["advantage"]
    return {
        "sampler": sampler,
        "collect": [
            *(["drafts.reuse"] if drafts else []),
            "generate",
            *(["drafts.remember"] if drafts else []),
            "judge",
            *(["screen"] if "speed" in methods else []),
        ],
        "learn": ["old_logprobs", *plain, *baselines, *targets, *advantage, *weights],
        "objective": {"value_regression" if regresses else "clipped": {"truncate": 2.0}},
    }


def written(data: Path, runs: Path, parts: dict[str, object]) -> Path:  # noqa: F811
    text = {
        "extends": "base/toy.yaml",
        "run": {"name": "run", "folder": str(runs)},
        "model": {"folder": str(data / "model")},
        "data": {"train": [str(data / "train.parquet")], "evaluate": []},
        "schedule": {"steps": 4, "save_every": 2},
        "sampling": {"max_tokens": 8},
        "reward": "tests.fakes.lucky:score",
        "judge": {"processes": 1, "deadline_s": 60.0},
        "actor": {"reference": "device", "update": {"steps": 1, "microbatch_tokens": 2048}},
        **parts,
    }
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / "run.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


def valued(data: Path, folder: Path, parts: dict[str, object]) -> tuple[str, ...]:  # noqa: F811
    """The overrides that A*-PO needs: where its values are."""
    if "value_regression" not in parts["objective"]:  # type: ignore[operator]
        return ()
    values = folder / "values.parquet"
    given = (f"data.values={values}", "data.solvable=false")
    launch.values(load(written(data, folder / "values", parts), given), 4, values)
    return given


FITTING = {
    "jspo, speed": chosen("jspo", "speed"),
    "jspo, spec_rl": chosen("jspo", "spec_rl"),
    "jspo, priorities": chosen("jspo", priorities=True),
    "a_star_po, spec_rl": chosen("a_star_po", "spec_rl"),
    "a_star_po, priorities": chosen("a_star_po", priorities=True),
    "speed, spec_rl": chosen("speed", "spec_rl"),
    "speed, smoothed": {**chosen("speed"), "learn": ["old_logprobs", "smoothed_stats", "advantage"]},
    "spec_rl, pspo": chosen("spec_rl", "pspo"),
}
REFUSED = {
    "jspo, a_star_po": (chosen("jspo", "a_star_po"), "'shrinkage_baseline' writes 'baseline', which objective"),
    "jspo, pspo": (chosen("jspo", "pspo"), "'shrinkage_baseline' and 'smoothed_stats' both write 'baseline'"),
    "a_star_po, speed": (chosen("a_star_po", "speed"), "one rollout a prompt leaves nothing to screen"),
    "a_star_po, pspo": (
        chosen("a_star_po", "pspo"),
        "'smoothed_stats' writes 'baseline' and 'spread', which objective",
    ),
    "speed, pspo": ({**chosen("speed"), "sampler": PRIORITISED}, "'screen' needs 'screening' beside it"),
    "speed, filter": (
        {**chosen("speed"), "collect": ["generate", "judge", "keep_mixed", "screen"]},
        "screening already keeps mixed groups only",
    ),
    "jspo, std division": (
        {**chosen("jspo"), "learn": ["old_logprobs", "group_baseline", "shrinkage_baseline", "advantage"]},
        "'group_baseline' and 'shrinkage_baseline' both write 'baseline'",
    ),
    "speed, importance weights": (
        {**chosen("speed"), "learn": ["old_logprobs", "leave_one_out_baseline", "advantage", "importance_weight"]},
        "stage 'importance_weight' reads 'draw_odds'",
    ),
    "spec_rl without memory": (
        {**chosen("spec_rl"), "collect": ["drafts.reuse", "generate", "judge"]},
        "'drafts.reuse' needs 'drafts.remember' beside it",
    ),
}
LENIENT = {"drafts.reuse": {"log_lenience": 0.5, "phases": ["screen", "continue"]}}


def test_every_pair_of_methods_is_either_run_or_refused_here():
    pairs = {f"{one}, {other}" for place, one in enumerate(METHODS) for other in METHODS[place + 1 :]}
    assert pairs <= FITTING.keys() | REFUSED.keys() | {"jspo, priorities", "a_star_po, priorities"}


@pytest.mark.parametrize("pair", REFUSED)
def test_what_cannot_be_right_together_is_refused_at_load_with_the_reason(pair, data, tmp_path):  # noqa: F811
    parts, reason = REFUSED[pair]
    needs = ("data.values=somewhere.parquet",) if "value_regression" in parts["objective"] else ()
    with pytest.raises(SpecError) as refusal:
        read_ideas(load(written(data, tmp_path, parts), needs))
    assert reason in str(refusal.value)


def test_two_samplers_cannot_even_be_written(data, tmp_path):  # noqa: F811
    with pytest.raises(SpecError, match="sampler"):
        load(written(data, tmp_path, {**chosen("speed"), "sampler": {**SCREENING, **PRIORITISED}}), ())


def test_screening_rollouts_are_never_reused_leniently(data, tmp_path):  # noqa: F811
    parts = chosen("speed", "spec_rl")
    parts["collect"][0] = LENIENT  # type: ignore[index]
    with pytest.raises(SpecError, match="lenient screening repeats"):
        read_ideas(load(written(data, tmp_path, parts), ()))


@pytest.mark.parametrize("pair", FITTING)
def test_a_pair_that_fits_trains_and_a_stop_changes_nothing(pair, data, tmp_path):  # noqa: F811
    parts = FITTING[pair]
    more = valued(data, tmp_path, parts)
    launch.train(load(written(data, tmp_path / "straight", parts), more))
    launch.train(load(written(data, tmp_path / "broken", parts), (*more, "schedule.steps=2")))
    launch.train(load(written(data, tmp_path / "broken", parts), more))
    straight, broken = tmp_path / "straight" / "run", tmp_path / "broken" / "run"
    assert digest(straight, 4) == digest(broken, 4)
    for step in range(1, 5):
        assert rollouts(straight, step).table.equals(rollouts(broken, step).table)


@pytest.mark.slow
@pytest.mark.parametrize("pair", FITTING)
def test_eight_steps_are_three_and_five_with_a_kill_between(pair, data, tmp_path):  # noqa: F811
    parts = FITTING[pair]
    more = (*valued(data, tmp_path, parts), "schedule.steps=8", "schedule.save_every=3")
    launch.train(load(written(data, tmp_path / "straight", parts), more))
    config = written(data, tmp_path / "broken", parts)
    kill_after(3, config, (*more, "schedule.save_async=true"))
    launch.train(load(config, more))
    straight, broken = tmp_path / "straight" / "run", tmp_path / "broken" / "run"
    assert digest(straight, 8) == digest(broken, 8)
    for step in range(1, 9):
        assert rollouts(straight, step).table.equals(rollouts(broken, step).table)
