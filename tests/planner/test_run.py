import json
from pathlib import Path

import pytest

from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Engines, Screen
from megatron_rl.planner.memory import footprint
from megatron_rl.planner.run import Guess, of_run
from megatron_rl.planner.search import predict, search
from megatron_rl.spec.load import SHIPPED, load
from megatron_rl.spec.schema import SpecError
from tests.planner.configs import MODELS, QWEN3_8B

CONFIGS = [path for path in sorted(SHIPPED.rglob("*.yaml")) if path.stem not in ("toy", "quickstart")]


@pytest.fixture
def planned(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))

    def run(name: str, *settings: str, nodes: int = 1, guess: Guess | None = None):
        spec = load(SHIPPED / name, [f"model.folder={tmp_path}", *settings])
        return of_run(spec, Cluster(nodes=nodes), guess)

    return run


def test_a_runs_own_layout_is_what_is_predicted(planned):
    full = "actor.recompute.granularity=full"
    setup, choice = planned("jspo.yaml", full, "rollout.vllm.replicas=8", "rollout.vllm.memory_share=0.4")
    assert (choice.actor.tp, choice.actor.dp, choice.engines) == (2, 4, Engines(1, 8, 256, 0.4))
    assert (setup.job.rows, setup.job.optimizer_steps, setup.job.scores) == (4096, 8, 1)
    one = predict(setup, choice)
    assert one.memory == footprint(setup, choice)
    assert one.timeline.phases["update"] > 2 * one.timeline.phases["score"]


def test_an_engine_gets_what_the_run_gives_it_and_no_more_than_there_is(planned):
    full = "actor.recompute.granularity=full"
    small, half = (planned("jspo.yaml", full, f"rollout.vllm.memory_share={share}") for share in (0.3, 0.4))
    assert predict(*small).memory.cache < predict(*half).memory.cache
    with pytest.raises(SpecError, match=r"set rollout\.vllm\.memory_share to at most 0\.4"):
        predict(*planned("jspo.yaml", full, "rollout.vllm.memory_share=0.9"))


def test_algorithms_differ_in_what_they_write_and_score(planned):
    assert planned("speed.yaml")[0].job.screen == Screen(64, 4, 20)
    drafts = planned("spec_rl.yaml", guess=Guess(drafted=0.7))[0].job
    assert (drafts.drafted, drafts.scores) == (0.7, 2)
    valued = planned("ppo.yaml")[0].job
    assert (valued.has_critic, valued.scores) == (True, 2)


def test_rollouts_lag_as_the_run_says_and_that_hides_writing_behind_learning(planned):
    setup, choice = planned("grpo_asynchronous.yaml")
    assert (setup.job.ahead, choice.placement) == (1, "split")
    assert predict(setup, choice).seconds < predict(*planned("grpo_asynchronous.yaml", "schedule.ahead=0")).seconds


def test_a_run_of_more_machines_than_there_are_is_still_something_to_search_around(planned):
    setup, choice = planned("grpo.yaml", "actor.dp=64")
    assert choice.actor.world > setup.cluster.gpus
    assert search(setup, best=1)[0].choice.actor.world <= setup.cluster.gpus


def test_a_mean_above_the_most_is_refused(planned):
    with pytest.raises(SpecError, match="give a smaller mean"):
        planned("grpo.yaml", guess=Guess(response_tokens=5000))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_fits_the_one_machine_of_eight_h100_that_it_names(config):
    named = Path(str(load(config).settings["model"].values["folder"])).name
    setup, choice = of_run(load(config, [f"model.folder={MODELS / named}"]), Cluster(nodes=1))
    assert predict(setup, choice).memory.refusal(setup.job.longest) == ""
