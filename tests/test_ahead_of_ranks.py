"""Collecting ahead of an actor whose ranks are processes, and by an engine that is one."""

import os
import signal

import pytest
import torch

from megatron_rl.batch.columns import OLD_LOGPROBS, SAMPLER_LOGPROBS, TOKEN_VERSIONS, VERSION
from megatron_rl.rollout.vllm_engine import VllmEngine
from tests.test_launch import digest
from tests.test_processes import TP2, config, curves, rollouts, run, under_ray  # noqa: F401  # config is a fixture

ONE_AHEAD = ("schedule.ahead=1", "objective.clipped.truncate=2.0")


def told_versions(folder, steps):
    return [set(rollouts(folder, step).numbers(VERSION).tolist()) for step in range(1, steps + 1)]


@pytest.mark.slow
def test_ranks_of_their_own_learn_meanwhile_and_a_stop_changes_nothing(config, tmp_path):  # noqa: F811
    two, four = (("schedule.save_every=2", f"schedule.steps={steps}", *ONE_AHEAD) for steps in (2, 4))
    alone = run(config, tmp_path / "alone", *four)
    straight = run(config, tmp_path / "straight", *under_ray(TP2, *four))
    run(config, tmp_path / "broken", *under_ray(TP2, *two))
    broken = run(config, tmp_path / "broken", *under_ray(TP2, *four))
    assert told_versions(straight, 4) == [{0}, {0}, {1}, {2}]
    assert digest(straight, 4) == digest(broken, 4)
    for step in range(1, 5):
        assert rollouts(straight, step).table.equals(rollouts(broken, step).table)
    names = ("loss", "entropy", "grad_norm")
    torch.testing.assert_close(
        torch.tensor(curves(straight, *names)), torch.tensor(curves(alone, *names)), rtol=1e-3, atol=1e-5
    )
    assert all(hidden > 0 for (hidden,) in curves(straight, "ahead/hidden_seconds"))


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_writes_while_the_actor_learns(config, tmp_path):  # noqa: F811
    engine = "rollout={vllm: {cache_gib: 0.0625, context: 128}}"
    finished = run(config, tmp_path, engine, "schedule.steps=4", *ONE_AHEAD)
    assert told_versions(finished, 4) == [{0}, {0}, {1}, {2}]
    (parity,) = curves(finished, "parity/max")[0]
    assert parity < 1e-4
    assert all(hidden > 0 for (hidden,) in curves(finished, "ahead/hidden_seconds"))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("in_flight", ["false", "true"])
def test_where_vllm_s_only_group_dies_while_the_actor_learns_its_batch_goes_on(
    config,  # noqa: F811
    tmp_path,
    monkeypatch,
    in_flight,
):
    generate, waves = VllmEngine.generate, []

    def kill_then_generate(engine, batch, sampling=None):
        waves.append(engine.fleet.version)
        if len(waves) == 3:
            os.kill(engine.fleet.berths[0].group.pid, signal.SIGKILL)
        return generate(engine, batch, sampling)

    monkeypatch.setattr(VllmEngine, "generate", kill_then_generate)
    engine = f"rollout={{vllm: {{cache_gib: 0.0625, context: 128, in_flight: {in_flight}}}}}"
    finished = run(config, tmp_path, engine, "schedule.steps=5", *ONE_AHEAD)
    assert len(waves) >= 6
    for step in range(1, 6):
        batch = rollouts(finished, step)
        gap_T = (batch.ragged(OLD_LOGPROBS).values - batch.ragged(SAMPLER_LOGPROBS).values).abs()
        fresh_T = batch.ragged(TOKEN_VERSIONS).values == step - 1
        assert float(gap_T[fresh_T].sum()) <= 1e-4 * int(fresh_T.sum())
    assert set(rollouts(finished, 3).ragged(TOKEN_VERSIONS).values.tolist()) == {2}


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_takes_up_what_it_wrote_by_older_weights(config, tmp_path):  # noqa: F811
    engine = "rollout={vllm: {cache_gib: 0.0625, context: 128}}"
    stretches = "collect=[{generate: {stretch: 3}}, judge]"
    finished = run(config, tmp_path, engine, stretches, "schedule.steps=4", *ONE_AHEAD)
    versions = [row.tolist() for step in range(1, 5) for row in rollouts(finished, step).ragged(TOKEN_VERSIONS).rows()]
    assert all(row == sorted(row) for row in versions)
    assert any(row[0] < row[-1] for row in versions)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("cut", ["actor.tp=1", TP2], ids=["in the driver", "of two ranks"])
def test_weights_of_an_actor_reach_vllm_in_the_middle_of_responses(config, tmp_path, cut):  # noqa: F811
    engine = "rollout={vllm: {in_flight: true, cache_gib: 0.25, context: 128}}"
    long = ("schedule.ahead=2", "objective.clipped.truncate=2.0", "schedule.steps=6", "sampling.max_tokens=100")
    finished = run(config, tmp_path, engine, *long, "schedule.save_every=4", cut)
    batches = [rollouts(finished, step) for step in range(1, 7)]
    for step, batch in enumerate(batches):
        versions = batch.ragged(TOKEN_VERSIONS)
        assert {*versions.values.tolist()} <= set(range(max(0, step - 2), step + 1))
        assert all(row.tolist() == sorted(row.tolist()) for row in versions.rows())
        gap_T = (batch.ragged(OLD_LOGPROBS).values - batch.ragged(SAMPLER_LOGPROBS).values).abs()
        fresh_T = versions.values == step
        assert float(gap_T[fresh_T].sum()) <= 1e-4 * int(fresh_T.sum())
        assert fresh_T.all() or float(gap_T[~fresh_T].mean()) > 1e-3
    assert any(len(set(row.tolist())) > 1 for batch in batches for row in batch.ragged(TOKEN_VERSIONS).rows())
    shares = [share for (share,) in curves(finished, "in_flight/spanning_share")]
    assert any(shares)
