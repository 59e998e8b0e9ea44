import pytest
import torch

from megatron_rl.accounting import WRITTEN, names, rollouts_of
from megatron_rl.batch.columns import (
    BUDGET,
    ERROR,
    FINISH,
    GROUP,
    LOSS_MASK,
    PREFIX,
    PREFIX_LOGPROBS,
    PROMPT_TOKENS,
    SAMPLER_LOGPROBS,
    SEED,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
)
from megatron_rl.drawing import requests
from megatron_rl.ports import Context
from tests.fakes.chain_engine import MarkovEngine, random_law
from tests.fakes.faulty_engine import FAULTS, FaultyEngine, dies, doubles, hangs, loses, says, swaps
from tests.fakes.tabular import NumberedPrompts


@pytest.fixture
def wave():
    context = Context(step=0, version=0, seed=0, machines={"prompts": NumberedPrompts(4)})
    return requests(context, [(0, 1), (0, 2), (0, 3)], samples=2, first_group=7)


@pytest.fixture
def engine():
    return MarkovEngine(random_law(0, tokens=5, stop_share=0.05))


def test_a_sound_engine_is_believed(wave, engine):
    assert rollouts_of(engine, wave).select(WRITTEN) == engine.generate(wave).select(WRITTEN)


def test_a_request_is_called_by_its_rollout_group_prompt_and_seed(wave):
    assert names(wave)[3].startswith("rollout 1 of group 8, prompt 'p2' (seed ")
    assert names(wave.select([SEED]))[3].startswith("request 3 (seed ")


@pytest.mark.parametrize(("fault", "rows", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_costs_the_rollouts_it_spoils_each_by_its_name_and_no_other(wave, engine, fault, rows, said):
    sound = engine.generate(wave).select(WRITTEN)
    rollouts = rollouts_of(FaultyEngine(engine, {0: fault}), wave)
    assert len(rollouts) == len(wave)
    for row in range(len(wave)):
        if row in rows:
            assert rollouts.strings(STATUS)[row] == "failed"
            assert rollouts.strings(ERROR)[row].startswith(names(wave)[row])
            assert said in rollouts.strings(ERROR)[row]
            assert rollouts.strings(FINISH)[row] == "abort"
            for column in (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS):
                assert rollouts.ragged(column).length_B[row] == 0
        else:
            assert rollouts.select(WRITTEN).take(torch.tensor([row])) == sound.take(torch.tensor([row]))


def test_rollouts_behind_one_that_is_missing_or_doubled_are_sound(wave, engine):
    for fault in (loses(0), doubles(0)):
        assert rollouts_of(FaultyEngine(engine, {0: fault}), wave).strings(STATUS) == ["failed"] + ["ok"] * 5


@pytest.mark.parametrize("fault", [dies, hangs])
def test_an_engine_that_dies_or_hangs_is_an_error_that_names_what_it_was_writing(wave, engine, fault):
    with pytest.raises((ConnectionResetError, TimeoutError)) as caught:
        rollouts_of(FaultyEngine(engine, {0: fault}), wave)
    assert "writing 6 rollouts" in caught.value.__notes__[0]
    assert all(name in caught.value.__notes__[0] for name in names(wave))


def test_a_rollout_that_nobody_asked_for_is_an_error_that_names_it(wave, engine):
    faulty = FaultyEngine(engine, {0: lambda _: engine.generate(wave)})
    with pytest.raises(RuntimeError, match="nobody asked for: prompt_id p2, group 8, slot 0"):
        rollouts_of(faulty, wave.where(wave.numbers(GROUP) == 7))


def test_a_column_that_is_missing_is_an_error(wave, engine):
    with pytest.raises(RuntimeError, match="owes the column loss_mask of rollout 0 of group 7"):
        rollouts_of(FaultyEngine(engine, {0: lambda rollouts: rollouts.without(LOSS_MASK)}), wave)


def test_a_prefix_must_be_gone_on_from_and_a_budget_kept(wave, engine):
    class Forgets(MarkovEngine):
        def generate(self, batch, sampling=None):
            return super().generate(batch.without(PREFIX, BUDGET), sampling)

    forgets = Forgets(engine.law_VV)
    asked = wave.with_columns({PREFIX: [[], [4, 4, 4, 4], [], [], [], []], BUDGET: [12, 12, 12, 12, 12, 1]})
    long = [row for row, length in enumerate(forgets.generate(wave)[TOKENS].length_B.tolist()) if length > 1]
    rollouts = rollouts_of(forgets, asked)
    assert "does not go on from its prefix" in rollouts.strings(ERROR)[1]
    assert 5 in long
    assert "tokens of at most 1" in rollouts.strings(ERROR)[5]
    assert rollouts.strings(STATUS).count("failed") == 2


def test_log_probabilities_that_came_with_the_request_are_not_the_engines_to_answer_for(wave, engine):
    asked = wave.with_columns({PREFIX: [[4, 4]] * 6, BUDGET: [12] * 6})
    known = asked.with_columns({PREFIX_LOGPROBS: [[-float("inf"), -1.0]] * 6})
    assert set(rollouts_of(engine, known).strings(STATUS)) == {"ok"}


def test_a_failed_rollout_keeps_the_engines_own_reason(wave, engine):
    def fails(rollouts):
        return rollouts.with_columns(
            status=["failed", *rollouts.strings(STATUS)[1:]], error=["too long", *rollouts.strings(ERROR)[1:]]
        )

    rollouts = rollouts_of(FaultyEngine(engine, {0: fails}), wave)
    assert rollouts.strings(ERROR)[0] == "too long"
    assert rollouts[TOKENS].length_B[0] == 0


def test_nothing_asked_is_nothing_given(wave, engine):
    nothing = wave.where(torch.zeros(6, dtype=torch.bool))
    assert len(rollouts_of(engine, nothing)) == 0


def test_requests_without_a_group_are_told_apart_by_their_seed(wave, engine):
    bare = wave.select([PROMPT_TOKENS, SEED])
    rollouts = rollouts_of(FaultyEngine(engine, {0: swaps(0, 1)}), bare)
    assert rollouts.strings(STATUS) == ["failed", "failed", "ok", "ok", "ok", "ok"]
    assert rollouts.strings(ERROR)[0].startswith("request 0 (seed ")
    assert rollouts_of(FaultyEngine(engine, {0: says(2, float("nan"))}), bare).strings(STATUS).count("failed") == 1
