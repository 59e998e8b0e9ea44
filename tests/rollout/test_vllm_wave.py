import threading

import pytest

from megatron_rl.batch.columns import ERROR, FINISH, STATUS, TOKEN_VERSIONS, TOKENS, VERSION
from megatron_rl.beside import beside
from megatron_rl.reshard.digest import ReceiverLost
from tests.rollout.opening import asked
from tests.rollout.scripted import open_scripted

PROMPTS = [[5]] * 5
WHOLE = [10, 11, 12, 13, 14, 15]


@pytest.fixture
def scripted(tmp_path):
    engines = []

    def opened(fault="none", **choices):
        engines.append(open_scripted(tmp_path, fault, **choices))
        return engines[-1]

    yield opened
    for engine in engines:
        engine.close()


def outcome(rollouts):
    assert all(
        status == ("failed" if error else "ok")
        for status, error in zip(rollouts.strings(STATUS), rollouts.strings(ERROR), strict=True)
    )
    return [row.tolist() for row in rollouts.ragged(TOKENS).rows()], rollouts.strings(ERROR)


@pytest.mark.parametrize("fault", ["none", "another order"])
def test_every_request_comes_back_in_its_own_row_whatever_the_order_of_pieces(scripted, fault):
    if fault == "another order":
        rollouts = scripted(fault, groups=2).generate(asked(PROMPTS, budgets=[2] * 5))
        assert outcome(rollouts) == ([[10, 11]] * 5, [""] * 5)
    else:
        assert outcome(scripted(fault, groups=2).generate(asked(PROMPTS))) == ([WHOLE] * 5, [""] * 5)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("wrong count", "told 2 tokens with 1 log-probabilities"),
        ("nan", "gave response token 4 the log-probability nan"),
        ("duplicate", "told the tokens from place 0 where 2 was next"),
        ("reorder", "told the tokens from place 4 where 0 was next"),
        ("too many", "wrote 13 tokens of at most 6"),
    ],
)
def test_a_fault_is_named_with_its_request_and_requested_is_scored_and_failed(scripted, fault, named):
    engine = scripted(fault)
    tokens, errors = outcome(engine.generate(asked(PROMPTS)))
    assert errors[1] == f"request 1 (seed 1): the engine {named}"
    assert sum(1 for error in errors if not error) + sum(1 for error in errors if error) == 5
    assert tokens[0] == WHOLE
    assert tokens[1] == []


def test_a_request_that_vllm_refuses_fails_alone(scripted):
    tokens, errors = outcome(scripted("refuses").generate(asked(PROMPTS)))
    assert errors[1] == "request 1 (seed 1) was refused: a token out of the vocabulary"
    assert [tokens[row] for row in (0, 2, 3, 4)] == [WHOLE] * 4


@pytest.mark.parametrize("fault", ["dies once", "hangs once"])
def test_the_requests_of_a_lost_group_are_taken_up_where_they_stood(scripted, fault):
    engine = scripted(fault, silence_s=0.5)
    assert outcome(engine.generate(asked(PROMPTS))) == ([WHOLE] * 5, [""] * 5)
    assert engine.fleet.restarts == 1


def test_other_groups_take_up_what_a_lost_one_had_when_nobody_sends_it_weights(scripted):
    engine = scripted("dies once", groups=2, send=None)
    assert outcome(engine.generate(asked(PROMPTS))) == ([WHOLE] * 5, [""] * 5)


def test_without_weights_for_the_replaced_group_its_requests_fail_by_name(scripted):
    engine = scripted("dies once", send=None)
    _, errors = outcome(engine.generate(asked(PROMPTS)))
    assert all("was not written: vLLM group 0 died" in error for error in errors)


def test_requests_that_end_every_group_fail_by_name(scripted):
    _, errors = outcome(scripted("always dies").generate(asked(PROMPTS)))
    assert all("was lost with 3 groups: vLLM group 0 died" in error for error in errors)


def test_a_group_that_tells_of_requests_it_has_not_is_replaced_until_nobody_trusts_it(scripted):
    engine = scripted("another's")
    tokens, errors = outcome(engine.generate(asked(PROMPTS)))
    assert engine.fleet.restarts >= 1
    assert len(tokens) == len(errors) == 5


def test_at_the_deadline_a_wave_is_cut_short_with_what_is_written(scripted):
    engine = scripted("never ends", deadline_s=0.5)
    rollouts = engine.generate(asked(PROMPTS))
    assert outcome(rollouts) == ([[10, 11]] * 5, [""] * 5)
    assert rollouts.strings(FINISH) == ["abort"] * 5


def test_progress_is_told_until_everything_is_done(scripted):
    engine, told = scripted(), []
    engine.progress = lambda *facts: told.append(facts)
    engine.generate(asked(PROMPTS))
    assert told[-1] == (5, 5, 30)


def begun(engine):
    """A wave of which every group has told something by version 0, in a thread of its own."""
    told, groups = threading.Event(), engine.groups

    def progress(done, total, tokens):
        if tokens >= 2 * len(PROMPTS) or (groups == 1 and tokens):
            told.set()

    engine.progress = progress
    rollouts = beside(lambda: engine.generate(asked(PROMPTS)), "wave")
    assert told.wait(20)
    return rollouts


def brought(engine, version):
    engine.begin(version)
    engine.finish(version)
    engine.serve(version)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_come_in_the_middle_of_a_wave_write_what_is_left_of_it(scripted, groups):
    engine = scripted("halves", groups=groups)
    wave = begun(engine)
    brought(engine, 1)
    rollouts = wave.result(20)
    assert outcome(rollouts) == ([WHOLE] * 5, [""] * 5)
    assert [row.tolist() for row in rollouts.ragged(TOKEN_VERSIONS).rows()] == [[0, 0, 0, 0, 1, 1]] * 5
    assert rollouts.numbers(VERSION).tolist() == [1] * 5
    assert engine.fleet.restarts == 0


@pytest.mark.parametrize(
    ("fault", "groups"),
    [
        ("dies receiving between halves", 1),
        ("dies receiving between halves", 2),
        ("is stopped receiving between halves", 2),
    ],
)
def test_a_group_lost_over_weights_in_the_middle_of_a_wave_is_replaced_and_its_requests_go_on(scripted, fault, groups):
    engine = scripted(fault, groups=groups, send=None)
    wave = begun(engine)
    for berth in engine.fleet.berths:
        berth.group.heartbeat_s = 1.0
    engine.begin(1)
    with pytest.raises(ReceiverLost, match="version 1 did not reach every group"):
        engine.finish(1)
    brought(engine, 1)
    rollouts = wave.result(20)
    assert outcome(rollouts) == ([WHOLE] * 5, [""] * 5)
    versions = [row.tolist() for row in rollouts.ragged(TOKEN_VERSIONS).rows()]
    assert all(row == sorted(row) and row[:2] == [0, 0] and row[-1] == 1 for row in versions)
    assert engine.fleet.restarts == 1


def test_a_wave_that_is_asked_for_while_weights_come_waits_for_them(scripted):
    engine = scripted("halves")
    engine.begin(1)
    wave = beside(lambda: engine.generate(asked(PROMPTS)), "wave")
    engine.finish(1)
    assert not wave.done()
    engine.serve(1)
    rollouts = wave.result(20)
    assert set(rollouts.ragged(TOKEN_VERSIONS).values.tolist()) == {1}


def test_whoever_ends_the_run_ends_a_wave_that_waits_for_weights(scripted):
    engine = scripted("halves")
    wave = begun(engine)

    def unwanted(done, total, tokens):
        raise InterruptedError("nobody wants it")

    engine.begin(1)
    engine.progress = unwanted
    with pytest.raises(InterruptedError):
        wave.result(20)
