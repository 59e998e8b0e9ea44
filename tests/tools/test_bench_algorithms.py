"""The smallest claim from its runs to its page, and what the meters count."""

import csv

import pytest

from tools import bench_algorithms
from tools.claims import baseline_error, jspo
from tools.claims.race import Race
from tools.claims.trial import Arm, Bench, Levels, Protocol, Result, Task

LUCKY = "reward=tests.fakes.lucky:score"
TASK = Task(
    train=(Levels(easiest=1, hardest=2, count=8),),
    held_out=(Levels(easiest=1, hardest=2, count=2),),
    samples=1,
    max_tokens=8,
    warm_up=2,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("claims")


def bench(work, **more):
    changes = (LUCKY, "sampler.uniform.prompts=4", "sampler.uniform.samples=2", "actor.update.steps=1")
    return Bench(work=work, claim="toy", task=TASK, protocol=Protocol(**{"changes": changes, **more}))


def test_the_smallest_claim_becomes_a_page_and_is_not_measured_twice(work, tmp_path, monkeypatch):
    arguments = ["jspo", "--seeds", "1", "--quick", "--work", str(work), "--results", str(tmp_path)]
    assert bench_algorithms.main(arguments) == 0
    page = (tmp_path / "jspo" / "README.md").read_text()
    assert "tools/bench_algorithms.py jspo --seeds 1" in page
    with (tmp_path / "jspo" / "table.csv").open() as file:
        assert [row["prompts"] for row in csv.DictReader(file)] == list(jspo.TASKS)
    assert (tmp_path / "jspo" / "figure.svg").stat().st_size > 1000
    monkeypatch.setattr(jspo, "measure", None)
    assert bench_algorithms.main(arguments) == 0


def test_rewards_that_are_pure_luck_are_best_foretold_by_the_other_prompts(work):
    draws = baseline_error.Draws(prompts=8, truth=32, pool=16, sizes=(2,), gradients=3)
    (entry,) = baseline_error.measure(bench(work, steps=1, evaluate_every=0), draws, seed=0)
    assert entry["error/JSPO"] < 0.6 * entry["error/RLOO"]
    assert entry["variance/JSPO"] < entry["variance/RLOO"]


@pytest.mark.slow
@pytest.mark.parametrize("claim", sorted(set(bench_algorithms.CLAIMS) - {"jspo"}))
def test_every_claim_becomes_a_page(claim, work, tmp_path):
    arguments = [claim, "--seeds", "1", "--quick", "--work", str(work), "--results", str(tmp_path)]
    assert bench_algorithms.main(arguments) == 0
    assert f"tools/bench_algorithms.py {claim} --seeds 1" in (tmp_path / claim / "README.md").read_text()


def test_what_a_run_spends_is_counted_where_it_is_spent(work):
    arm = Arm(name="spec", config="spec_rl")
    result = bench(work, steps=4, evaluate_every=2).results([arm], [0])[0]
    first, second, third, _ = result.steps
    assert first["rollouts/generated"] == first["rollouts/trained"] == 8
    assert first["tokens/generated"] == first["tokens/trained"]
    assert first.get("tokens/verified", 0) == second.get("tokens/verified", 0) == 0
    # The third step draws the first epoch's prompts again: their drafts are verified, and what is kept is not written.
    assert third["tokens/verified"] > 0
    assert third["tokens/generated"] - second["tokens/generated"] < third["tokens/trained"] - second["tokens/trained"]
    stages = sum(third[f"processor/{stage}"] for stage in ("generate", "score", "update", "judge", "verify"))
    assert stages <= third["processor/all"]
    assert [evaluation["step"] for evaluation in result.evaluations] == [0, 2, 4]


def test_a_run_ends_where_its_target_is_reached(work):
    arm = Arm(name="rloo", config="rloo")
    result = bench(work, steps=4, evaluate_every=1, target=0.0).results([arm], [0])[0]
    assert len(result.steps) == 1


def run_of(arm, accuracies, tokens):
    spent = [{"step": place, "tokens/generated": tokens * place} for place in range(len(accuracies))]
    told = [entry | {"accuracy": accuracy} for entry, accuracy in zip(spent, accuracies, strict=True)]
    return Result(arm=arm, seed=0, steps=spent[1:], evaluations=told)


def race_of(*results):
    named = [Arm(name=result.arm, config="rloo") for result in results]
    prices = {"steps": ("step",), "tokens": ("tokens/generated",)}
    return Race(results=results, arms=named, baseline="slow", target=0.5, prices=prices)


def test_a_race_is_won_at_the_second_of_two_evaluations_that_together_reach_the_target():
    race = race_of(run_of("slow", [0.0, 0.2, 0.4, 0.6], 10), run_of("fast", [0.0, 0.5, 0.5], 5))
    slow, fast = race.runs()
    assert (slow["tokens"], fast["tokens"]) == (30, 10)
    assert race.said("fast", "tokens", 2.0).endswith("met by every seed.")
    assert race.ratio("fast", "tokens") == "3.00 (3.00–3.00)"


def test_a_baseline_that_does_not_arrive_gives_a_bound():
    race = race_of(run_of("slow", [0.0, 0.2, 0.3], 10), run_of("fast", [0.0, 0.5, 0.5], 5))
    assert race.ratio("fast", "tokens") == "at least 2.00 (2.00–2.00)"
    assert "0 of 1 seeds, so not met" in race.said("slow", "tokens", 1.0)
