"""Responses written in stretches over several waves, in the loop: whose tokens are whose, and what a stop changes."""

from typing import ClassVar

import pytest
import torch

from megatron_rl.ahead import Ahead
from megatron_rl.batch.columns import SAMPLER_LOGPROBS, TOKEN_VERSIONS, VERSION
from megatron_rl.beside import finished
from megatron_rl.loop import resume, train
from megatron_rl.pipeline import chain
from megatron_rl.ports import Update
from megatron_rl.samplers.uniform import Uniform
from megatron_rl.stages.generate import Generate
from megatron_rl.stages.judge import Judge
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.test_loop import make_run


class Still:
    """An actor that saves, loads and moves nothing; its weights have other versions all the same."""

    def update(self, batch, objective):
        return Update(metrics={}, steps=1)

    def save(self, folder):
        folder.mkdir(parents=True)
        return finished(None)

    def load(self, folder):
        pass


class NewLaws:
    """Every version of the policy is another Markov chain."""

    metrics: ClassVar[dict[str, float]] = {}

    def __init__(self, engine):
        self.engine = engine

    def publish(self, version):
        self.engine.law_VV, self.engine.version = random_law(version), version
        return version


def stretched(folder, steps, by):
    engine, actor = MarkovEngine(random_law(0)), Still()
    collect = chain([("generate", Generate(stretch=4)), ("judge", Judge())])
    parts = {"actor": actor, "weights": NewLaws(engine), "collect": collect, "evaluator": None}
    run = make_run(folder, steps, feed=Ahead(by), sampler=Uniform(prompts=3, samples=4), **parts)
    run.machines = {**run.machines, "engine": engine, "actor": actor}
    return run


@pytest.mark.parametrize("by", [0, 1])
def test_responses_in_stretches_go_on_under_newer_weights_and_a_stop_changes_nothing(tmp_path, by):
    straight = stretched(tmp_path / "straight", 8, by)
    train(straight)
    train(stretched(tmp_path / "broken", 3, by))
    second = stretched(tmp_path / "broken", 8, by)
    assert resume(second)
    train(second)
    assert straight.memories == second.memories
    assert straight.telemetry.batches[3:] == second.telemetry.batches
    spans = [
        (int(row[0]), int(row[-1]), version)
        for batch in straight.telemetry.batches
        for row, version in zip(batch.ragged(TOKEN_VERSIONS).rows(), batch[VERSION].tolist(), strict=True)
    ]
    assert any(first < last for first, last, _ in spans)
    assert all(first <= last == version <= first + 12 // 4 - 1 for first, last, version in spans)


def test_every_token_of_a_stretched_response_has_the_log_probability_of_its_own_version(tmp_path):
    run = stretched(tmp_path, 8, by=1)
    train(run)
    for batch in run.telemetry.batches:
        versions = batch.ragged(TOKEN_VERSIONS)
        for version in set(versions.values.tolist()):
            now = MarkovEngine(random_law(version)).score(batch).values
            mine_T = versions.values == version
            torch.testing.assert_close(batch.ragged(SAMPLER_LOGPROBS).values[mine_T], now[mine_T])
