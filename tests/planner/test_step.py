from dataclasses import replace
from pathlib import Path

import pytest

from megatron_rl.actor.architecture import describe
from megatron_rl.actor.recipe import UpdateSettings
from megatron_rl.actor.settings import ActorSettings
from megatron_rl.planner.hardware import Cluster
from megatron_rl.planner.job import Choice, Engines, Job, Screen, Setup
from megatron_rl.planner.lengths import Lengths
from megatron_rl.planner.step import forecast, phases, rough_seconds, write
from megatron_rl.planner.syncing import sync
from tests.planner.configs import QWEN3_8B
from tests.planner.published import TABLE, predicted

PAGE = Path(__file__).parents[2] / "docs/planner.md"
SETUP = Setup(
    architecture=describe(QWEN3_8B),
    cluster=Cluster(nodes=2),
    job=Job(prompts=64, samples=8, lengths=Lengths(mean=1000, most=4096)),
)
ACTOR = ActorSettings(tp=2, dp=8, update=UpdateSettings(microbatch_tokens=8192))
TOGETHER = Choice(actor=ACTOR, engines=Engines(1, 16))
APART = Choice(actor=replace(ACTOR, dp=4), engines=Engines(1, 8), placement="split")


def seconds(setup: Setup, choice: Choice) -> float:
    return forecast(setup, choice, write(setup, choice), sync(setup, choice)).seconds


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_published_steps_are_forecast_as_the_documentation_says(row):
    found = predicted(row).seconds
    error = found / row.seconds - 1
    assert f"| {row.name} | {row.seconds:g} s | {found:.0f} s | {error:+.0%} |".replace(
        "-", "−"
    ) in PAGE.read_text().replace("-", "−")
    assert abs(error) < (0.45 if "A3B" in row.name else 0.25)


def test_a_colocated_step_is_the_sum_of_its_phases():
    one = forecast(SETUP, TOGETHER, write(SETUP, TOGETHER), sync(SETUP, TOGETHER))
    assert one.seconds == pytest.approx(sum(one.timeline.phases.values()))
    assert list(one.timeline.phases) == ["rollout", "judge", "score", "update", "sync"]


def test_lagging_rollouts_overlap_on_machines_of_their_own():
    behind = replace(SETUP, job=replace(SETUP.job, ahead=1))
    assert seconds(behind, APART) < 0.8 * seconds(SETUP, APART)


def test_what_a_search_guesses_is_what_a_step_takes():
    for setup in (SETUP, replace(SETUP, job=replace(SETUP.job, ahead=1))):
        for choice in (TOGETHER, APART):
            written, moved = write(setup, choice), sync(setup, choice)
            guess = rough_seconds(setup, choice, written.seconds, moved.seconds)
            assert guess == pytest.approx(forecast(setup, choice, written, moved).seconds, rel=0.02)


def test_screening_writes_less_for_as_many_rows_to_learn_from():
    job = replace(SETUP.job, prompts=32, samples=24)
    # Of 128 prompts with 24 rollouts each a quarter would teach.
    plain = replace(SETUP, job=replace(job, prompts=128))
    screened = replace(SETUP, job=replace(job, screen=Screen(128, 4, 20)))
    assert screened.job.written < plain.job.written / 2
    assert write(screened, TOGETHER).seconds < 0.6 * write(plain, TOGETHER).seconds


def test_drafts_cost_a_score_and_shorten_the_rollout():
    drafted = replace(SETUP, job=replace(SETUP.job, drafted=0.6))
    named = {phase.name: phase.seconds for phase in phases(drafted, TOGETHER, 1.0, 0.1)}
    assert named["drafts"] == pytest.approx(named["score"])
    assert write(drafted, TOGETHER).seconds < write(SETUP, TOGETHER).seconds
