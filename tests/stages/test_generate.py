import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    ERROR,
    FINISH,
    GROUP,
    PREFIX,
    SAMPLER_LOGPROBS,
    SEED,
    SLOT,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
    VERSION,
)
from megatron_rl.batch.memory import read_memory, write_memory
from megatron_rl.batch.ragged import Ragged
from megatron_rl.drawing import requests
from megatron_rl.ports import Context
from megatron_rl.stages.generate import Generate
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.fakes.faulty_engine import FaultyEngine, LosesSome, loses
from tests.fakes.tabular import NumberedPrompts, TabularEngine


def test_every_request_gets_a_response_and_the_wave_is_summed_up():
    context = Context(step=0, version=0, seed=0, machines={"engine": TabularEngine(4), "prompts": NumberedPrompts(4)})
    asked = requests(context, [(0, 1), (0, 2)], samples=3, first_group=0)
    answered, _ = Generate()(asked, None, context)
    assert answered[STATUS] == ["ok"] * 6
    assert answered[TOKENS].length_B.tolist() == [1] * 6
    assert answered.metrics == {
        "rollout/length_mean": 1.0,
        "rollout/length_max": 1.0,
        "rollout/tokens": 6.0,
        "rollout/truncated_share": 0.0,
        "rollout/requested": 6.0,
        "rollout/failed": 0.0,
        "rollout/failed_share": 0.0,
    }


def test_lengths_are_of_the_rollouts_that_came_to_an_end():
    context, asked = asked_of(FaultyEngine(TabularEngine(8), {0: loses(2)}), groups=1)
    metrics = Generate()(asked, None, context)[0].metrics
    assert (metrics["rollout/length_mean"], metrics["rollout/truncated_share"]) == (1.0, 0.0)
    assert (metrics["rollout/failed"], metrics["rollout/failed_share"]) == (1.0, 0.25)
    context, asked = asked_of(LosesSome(TabularEngine(8), 1.0), groups=1)
    metrics = Generate()(asked, None, context)[0].metrics
    assert metrics["rollout/failed"] == metrics["rollout/requested"] == 4
    assert "rollout/length_mean" not in metrics


def asked_of(engine, groups, version=0, first_group=0):
    """A context and four requests of each of so many prompts."""
    machines = {"engine": engine, "prompts": NumberedPrompts(8)}
    context = Context(step=version, version=version, seed=0, machines=machines)
    return context, requests(context, [(0, place) for place in range(groups)], samples=4, first_group=first_group)


@pytest.mark.parametrize("stretch", [1, 4, 5, 12, 100])
def test_by_the_same_weights_stretches_add_up_to_what_one_trip_writes(stretch):
    engine = MarkovEngine(random_law(0))
    context, asked = asked_of(engine, groups=6)
    at_once, _ = Generate()(asked, None, context)
    done, memory = Generate(stretch=stretch)(asked, None, context)
    parts = [done]
    while memory is not None:
        done, memory = Generate(stretch=stretch)(
            asked.where(torch.zeros(len(asked), dtype=torch.bool)), memory, context
        )
        parts.append(done)
    together = Batch.concat(parts)
    order = torch.argsort(together.numbers(GROUP) * 4 + together.numbers(SLOT))
    for column in (GROUP, SLOT, SEED, TOKENS, FINISH, STATUS, VERSION, TOKEN_VERSIONS):
        assert together.take(order).select([column]) == at_once.select([column])
    found, expected = together.take(order).ragged(SAMPLER_LOGPROBS), at_once.ragged(SAMPLER_LOGPROBS)
    torch.testing.assert_close(found.values, expected.values)


def test_what_is_not_done_waits_in_whole_groups_and_survives_a_save(tmp_path):
    engine = MarkovEngine(random_law(0))
    context, asked = asked_of(engine, groups=6)
    done, memory = Generate(stretch=6)(asked, None, context)
    begun = memory["begun"]
    assert len(done) + len(begun) == len(asked)
    assert set(done[GROUP].tolist()).isdisjoint(begun[GROUP].tolist())
    assert "" not in done[FINISH]
    assert PREFIX not in done
    assert {len(row) for row, finish in zip(begun[TOKENS].rows(), begun[FINISH], strict=True) if not finish} == {6}
    write_memory(memory, tmp_path)
    assert read_memory(tmp_path) == memory
    assert done.metrics["stretch/begun"] == len(begun)
    assert done.metrics["rollout/requested"] == len(done)


def test_every_token_keeps_the_version_and_the_log_probability_that_it_was_written_with():
    engine = MarkovEngine(random_law(0))
    context, asked = asked_of(engine, groups=6)
    _, memory = Generate(stretch=6)(asked, None, context)
    before = memory["begun"]
    engine.law_VV, engine.version = random_law(1, stop_share=0.5), 1
    context, fresh = asked_of(engine, groups=1, version=1, first_group=6)
    done, memory = Generate(stretch=6)(fresh, memory, context)
    assert memory is None
    resumed = done.where(done.numbers(GROUP) < 6)
    assert resumed.select([GROUP, SLOT]) == before.select([GROUP, SLOT])
    length_B = before[TOKENS].length_B
    assert torch.equal(resumed[SAMPLER_LOGPROBS].head(length_B).values, before[SAMPLER_LOGPROBS].values)
    versions = resumed[TOKEN_VERSIONS]
    assert set(versions.head(length_B).values.tolist()) == {0}
    assert int(versions.values.sum()) == len(versions.values) - int(length_B.sum())
    was_open_B = torch.tensor([finish == "" for finish in before[FINISH]])
    assert resumed[VERSION].tolist() == was_open_B.long().tolist()
    assert done.metrics["stretch/versions_max"] == 1
    now = engine.score(resumed).values[versions.values == 1]
    torch.testing.assert_close(resumed[SAMPLER_LOGPROBS].values[versions.values == 1], now)


def test_a_stretch_that_several_versions_wrote_is_recorded_token_by_token():
    class ChangesAtOnce(MarkovEngine):
        """The first token that it adds is of the version before."""

        def generate(self, batch, sampling=None):
            told = super().generate(batch, sampling)
            begun_B, versions = batch[PREFIX].length_B, told[TOKEN_VERSIONS].values.clone()
            versions[told[TOKENS].offsets[:-1] + begun_B] -= 1
            return told.with_columns(token_versions=Ragged(versions, told[TOKENS].offsets))

    engine = ChangesAtOnce(random_law(0, stop_share=0.0))
    engine.version = 1
    context, asked = asked_of(engine, groups=1)
    _, memory = Generate(stretch=6)(asked, None, context)
    engine.version = 2
    done, _ = Generate(stretch=6)(asked.where(torch.zeros(4, dtype=torch.bool)), memory, context)
    assert [row.tolist() for row in done[TOKEN_VERSIONS].rows()] == [[0, *[1] * 5, 1, *[2] * 5]] * 4


def test_a_rollout_that_fails_on_its_way_is_over():
    class Loses(MarkovEngine):
        def generate(self, batch, sampling=None):
            told = super().generate(batch, sampling)
            return told.take(torch.arange(len(told) - 1)) if len(self.asked) == 2 else told

    engine = Loses(random_law(0))
    context, asked = asked_of(engine, groups=1)
    done, memory = Generate(stretch=3)(asked, None, context)
    while memory is not None:
        done, memory = Generate(stretch=3)(done.where(torch.zeros(len(done), dtype=torch.bool)), memory, context)
    assert len(engine.asked) > 1
    assert done[STATUS].count("failed") == 1
    assert "was not given back" in "".join(done[ERROR])


def test_stretches_refuse_the_company_of_ideas_that_need_whole_trips():
    assert Generate().conflicts == {}
    assert set(Generate(stretch=8).conflicts) == {"screening", "drafts.reuse"}
