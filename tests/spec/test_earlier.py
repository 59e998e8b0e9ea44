from pathlib import Path

import pytest
import yaml

from megatron_rl.spec.describe import as_yaml
from megatron_rl.spec.earlier import completed, completed_section
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_the_present_version_wrote_is_left_as_it_is(path):
    written = yaml.safe_load(as_yaml(load(path, ["model.folder=m", "run.name=r"])))
    assert completed(written) == written


def test_sections_and_keys_that_have_come_since_are_at_their_defaults():
    written = yaml.safe_load(as_yaml(load(CONFIGS / "grpo.yaml", ["model.folder=m", "schedule.keep=7"])))
    then = written | {"schedule": {key: written["schedule"][key] for key in written["schedule"] if key != "ahead"}}
    del then["cluster"], then["rollout"]
    defaults = {"cluster": completed_section("cluster", {}), "rollout": completed_section("rollout", {"embedded": {}})}
    assert completed(then) == written | defaults
    assert completed(then)["schedule"]["keep"] == 7


def test_choices_and_steps_of_a_chain_are_completed_by_their_own_keys():
    engine = completed_section("rollout", {"vllm": {"gpus": 4}})["vllm"]
    assert (engine["gpus"], engine["in_flight"]) == (4, False)
    first, second = completed_section("learn", [{"optimal_value": {}}, {"importance_weight": {"beta": 1.0}}])
    assert (first, second) == ({"optimal_value": {"beta": 0.5}}, {"importance_weight": {"beta": 1.0}})


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("dice", {"sides": 6}),
        ("sampler", {"of_long_ago": {"prompts": 4}}),
        ("learn", [{"of_long_ago": {}}]),
        ("learn", ["advantage", 3, None]),
        ("reward", "gsm8k"),
        ("schedule", None),
    ],
)
def test_what_is_no_longer_known_stays_as_it_was_written(name, written):
    assert completed_section(name, written) == written


def test_a_key_that_is_no_longer_known_stays_beside_the_others():
    assert completed_section("schedule", {"tempo": "allegro"})["tempo"] == "allegro"
    assert completed({"dice": 1})["dice"] == 1
    assert "objective" not in completed({})


@pytest.mark.parametrize("written", [None, "grpo", [1]])
def test_a_file_that_holds_no_configuration_is_told(written):
    with pytest.raises(SpecError, match=r"spec\.yaml holds no configuration but .*; remove that file to go on"):
        completed(written)
