import subprocess
import sys

import pytest

from megatron_rl.ideas import read_ideas
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.spec import files
from megatron_rl.spec.schema import SpecError
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_ideas_are_built_and_say_what_they_need(data, tmp_path):  # noqa: F811
    ideas = read_ideas(spec(data, tmp_path))
    assert ideas.sampler == Uniform(prompts=4, samples=4)
    assert [name for name, _ in ideas.collect] == ["generate", "judge"]
    assert ideas.needs == {"engine", "judge", "actor"}


def test_a_column_read_before_it_is_written_is_refused_at_load(data, tmp_path):  # noqa: F811
    with pytest.raises(SpecError, match="stage 'advantage' reads 'baseline'"):
        read_ideas(spec(data, tmp_path, "learn=[advantage]"))


def test_lengths_that_were_not_written_follow_the_response_budget(data, tmp_path):  # noqa: F811
    by_budget = "objective={clipped: {aggregation: seq-mean-token-sum-norm}}"
    ideas = read_ideas(spec(data, tmp_path, by_budget, "collect=[generate, judge, overlong_penalty]"))
    assert ideas.objective.max_response == 8
    assert (ideas.collect[-1][1].max_tokens, ideas.collect[-1][1].buffer_tokens) == (8, 1)
    written = "objective={clipped: {aggregation: seq-mean-token-sum-norm, max_response: 5}}"
    assert read_ideas(spec(data, tmp_path, written)).objective.max_response == 5


def test_every_unwritten_column_is_named(data, tmp_path):  # noqa: F811
    with pytest.raises(SpecError) as refusal:
        read_ideas(spec(data, tmp_path, "collect=[generate]", "learn=[group_baseline, importance_weight]"))
    assert len([problem for problem in refusal.value.problems if "reads" in problem]) == 3


def test_an_engine_that_sleeps_while_the_actor_learns_is_not_asked_to_write_then(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(files, "OPTIONAL", {})
    asleep, together = "rollout={vllm: {sleep: true}}", ("schedule.ahead=1", "cluster.placement=split")
    read_ideas(spec(data, tmp_path, asleep))
    with pytest.raises(SpecError) as refusal:
        read_ideas(spec(data, tmp_path, asleep, *together))
    assert sum("rollout.vllm.sleep" in problem for problem in refusal.value.problems) == 2


def test_weights_come_in_flight_where_rollouts_are_written_ahead_and_nowhere_else(data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(files, "OPTIONAL", {})
    flying, corrected = "rollout={vllm: {in_flight: true}}", "objective={clipped: {truncate: 2.0}}"
    read_ideas(spec(data, tmp_path, flying, "schedule.ahead=1", corrected))
    with pytest.raises(SpecError, match=r"with schedule\.ahead at 0 none does; set it to 1"):
        read_ideas(spec(data, tmp_path, flying))
    with pytest.raises(SpecError, match=r"it never reads 'sampler_logprobs'; set its `truncate`"):
        read_ideas(spec(data, tmp_path, flying, "schedule.ahead=1"))
    with pytest.raises(SpecError, match=r"embedded.*in_flight|in_flight.*embedded"):
        read_ideas(spec(data, tmp_path, "rollout={embedded: {in_flight: true}}"))


def test_ideas_are_proved_without_waking_a_machine():
    heavy = "{'megatron', 'vllm', 'ray', 'transformers'}"
    script = f"import sys, megatron_rl.ideas; sys.exit(len({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
