"""What every rollout engine promises. Another engine enters by one line in ENGINES and a fixture in conftest.py."""

from types import SimpleNamespace

import pytest
import torch

from megatron_rl.batch.columns import (
    ERROR,
    FINISH,
    GROUP,
    LOSS_MASK,
    PREFIX_LOGPROBS,
    PROMPT_TOKENS,
    RESPONSE_TEXT,
    SAMPLER_LOGPROBS,
    SEED,
    STATUS,
    TOKEN_VERSIONS,
    TOKENS,
    VERSION,
)
from megatron_rl.ops.logprobs import Sampling
from megatron_rl.ports import RolloutEngine
from tests.contracts.engines import CONTEXT, END, MAX_TOKENS, VOCABULARY, broken_folder, model_folder
from tests.rollout.opening import asked, random_prompts, words
from tests.rollout.reference_law import expected_logprobs

ENGINES = ["embedded_engine", pytest.param("vllm_engine", marks=pytest.mark.vllm)]
WRITTEN = (TOKENS, SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS, FINISH, STATUS, ERROR, VERSION, RESPONSE_TEXT)
LAWS = [
    Sampling(),
    Sampling(temperature=0),
    Sampling(temperature=0.7),
    Sampling(top_p=0.8),
    Sampling(top_k=7),
    Sampling(min_p=0.2),
    Sampling(temperature=1.3, top_p=0.9, top_k=20, min_p=0.02),
]
TOLERANCE = 1e-4
EDGE_SHARE = 0.005
"""Rounding may take a token at the very edge of what a law keeps to either side of it."""


@pytest.fixture(params=ENGINES)
def contestant(request, engine_folder):
    """The engine with the weights of `engine_folder` as version 3, whatever the test before it left."""
    entered = request.getfixturevalue(request.param)
    entered.publish(engine_folder, 3)
    entered.stop_at(())
    return entered


@pytest.fixture
def engine(contestant):
    return contestant.engine


@pytest.fixture
def plain(engine):
    """Twenty prompts and what the engine makes of them."""
    prompts = random_prompts(20)
    batch = asked(prompts)
    return SimpleNamespace(prompts=prompts, batch=batch, rollouts=engine.generate(batch))


def tokens_of(rollouts):
    return [row.tolist() for row in rollouts.ragged(TOKENS).rows()]


def largest_differences(ours, theirs):
    """The largest difference, tokens at the edge of a law aside; a token that the law never draws is infinitely off."""
    difference_T = torch.cat(list(ours)) - torch.cat(list(theirs))
    return float(difference_T.abs().sort().values[: int((1 - EDGE_SHARE) * len(difference_T))].max())


def test_it_is_a_rollout_engine_that_says_its_law_and_its_longest_response(engine):
    assert isinstance(engine, RolloutEngine)
    assert (engine.sampling, engine.max_tokens) == (Sampling(), MAX_TOKENS)


def test_requested_is_returned_row_for_row_with_what_came_along(engine, plain):
    batch = plain.batch.with_columns({GROUP: list(range(100, 120))})
    rollouts = engine.generate(batch)
    for column in (PROMPT_TOKENS, SEED, GROUP, *WRITTEN):
        assert column in rollouts
    assert rollouts[GROUP].tolist() == batch[GROUP].tolist()
    assert [row.tolist() for row in rollouts[PROMPT_TOKENS].rows()] == plain.prompts
    order = list(reversed(range(20)))
    turned = engine.generate(plain.batch.take(torch.tensor(order)))
    assert turned[SEED].tolist() == order
    assert tokens_of(turned) == [tokens_of(rollouts)[row] for row in order]


def test_token_columns_are_as_long_as_the_response(plain):
    length_B = plain.rollouts[TOKENS].length_B
    for column in (SAMPLER_LOGPROBS, LOSS_MASK, TOKEN_VERSIONS):
        assert torch.equal(plain.rollouts.ragged(column).length_B, length_B)
    assert plain.rollouts[LOSS_MASK].values.unique().tolist() == [1]
    assert plain.rollouts.strings(RESPONSE_TEXT) == [words(row) for row in tokens_of(plain.rollouts)]


def test_the_seed_decides(engine, plain):
    assert tokens_of(engine.generate(plain.batch)) == tokens_of(plain.rollouts)
    others = tokens_of(engine.generate(asked(plain.prompts, seeds=list(range(50, 70)))))
    assert sum(map(list.__ne__, others, tokens_of(plain.rollouts))) >= 15
    same_prompt = tokens_of(engine.generate(asked([[5, 6, 7]] * 8)))
    assert len({tuple(row) for row in same_prompt}) >= 7


def test_a_response_ends_with_an_end_token_or_with_its_budget(engine):
    budgets = [1 + row % MAX_TOKENS for row in range(100)]
    rollouts = engine.generate(asked(random_prompts(100), budgets=budgets))
    for row, finish, budget in zip(tokens_of(rollouts), rollouts.strings(FINISH), budgets, strict=True):
        assert finish == ("stop" if row[-1] in END else "length")
        assert finish == "stop" or len(row) == budget
        assert not set(row[:-1]) & set(END)
    assert set(rollouts.strings(FINISH)) == {"stop", "length"}
    assert set(rollouts.strings(STATUS)) == {"ok"}
    assert set(rollouts.strings(ERROR)) == {""}


def test_a_response_without_a_budget_has_at_most_the_engines_own(engine, plain):
    assert int(plain.rollouts[TOKENS].length_B.max()) == MAX_TOKENS


def test_the_context_bounds_a_response(engine):
    rollouts = engine.generate(asked([[5] * (CONTEXT - 3)]), Sampling(temperature=0))
    assert rollouts[TOKENS].length_B.tolist() == [3]
    assert rollouts.strings(FINISH) == ["length"]


def test_a_prefix_is_kept_and_continued_as_if_it_had_been_written(engine, plain):
    written = engine.generate(plain.batch, Sampling(temperature=0))
    whole = tokens_of(written)
    heads = [row[: len(row) // 2] for row in whole]
    known = [row[: len(row) // 2].tolist() for row in written[SAMPLER_LOGPROBS].rows()]
    asked_on = asked(plain.prompts, prefixes=heads).with_columns({PREFIX_LOGPROBS: known})
    resumed = engine.generate(asked_on, Sampling(temperature=0))
    assert tokens_of(resumed) == whole
    assert torch.equal(resumed[SAMPLER_LOGPROBS].values, written[SAMPLER_LOGPROBS].values)
    drawn = engine.generate(asked_on)
    assert all(row[: len(head)] == head for row, head in zip(tokens_of(drawn), heads, strict=True))
    assert tokens_of(engine.generate(asked_on)) == tokens_of(drawn)


def test_a_prefix_counts_towards_its_budget_and_gets_log_probabilities_where_it_came_without(engine, plain):
    prefixes = [[40, 41, 42]] * 20
    resumed = engine.generate(asked(plain.prompts, prefixes=prefixes, budgets=[3, 2] + [9] * 18))
    assert tokens_of(resumed)[0] == [40, 41, 42]
    assert tokens_of(resumed)[1] == [40, 41, 42]
    assert all(row[:3] == [40, 41, 42] and len(row) <= 9 for row in tokens_of(resumed))
    torch.testing.assert_close(resumed[SAMPLER_LOGPROBS].values, engine.score(resumed).values, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_a_prefix_that_ends_the_response_is_returned_as_it_is(contestant, with_logprobs):
    contestant.stop_at([words([33])])
    prefixes, budgets = [[40, *END], [40, *END], [40, 33], [40, 33], [40, 41]], [9, 2, 9, 2, 2]
    batch = asked([[5, 6, 7]] * 5, prefixes=prefixes, budgets=budgets)
    if with_logprobs:
        batch = batch.with_columns({PREFIX_LOGPROBS: [[-0.5, -0.25]] * 5})
    rollouts = contestant.engine.generate(batch)
    assert tokens_of(rollouts) == prefixes
    assert rollouts.strings(FINISH) == ["stop"] * 4 + ["length"]
    assert rollouts.strings(STATUS) == ["ok"] * 5


def test_a_stop_text_that_spans_tokens_ends_the_response_and_is_kept(contestant, plain):
    row = next(row for row in tokens_of(plain.rollouts) if len(row) > 6)
    place = tokens_of(plain.rollouts).index(row)
    contestant.stop_at([words(row[3:5])])
    stopped = contestant.engine.generate(plain.batch)
    assert tokens_of(stopped)[place] == row[:5]
    assert stopped.strings(FINISH)[place] == "stop"
    assert stopped.strings(RESPONSE_TEXT)[place].endswith(words(row[3:5]))
    assert stopped[SAMPLER_LOGPROBS].length_B[place] == 5


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_log_probabilities_are_those_of_the_law_that_tokens_are_drawn_from(engine, engine_folder, law):
    rollouts = engine.generate(asked(random_prompts(60)), law)
    expected = expected_logprobs(engine_folder, rollouts, law)
    assert len(rollouts[TOKENS].values) > 500
    assert largest_differences(rollouts[SAMPLER_LOGPROBS].rows(), expected) < TOLERANCE


def test_a_score_is_what_generate_said(engine, engine_folder, plain):
    scores = engine.score(plain.rollouts)
    assert torch.equal(scores.offsets, plain.rollouts[TOKENS].offsets)
    torch.testing.assert_close(scores.values, plain.rollouts[SAMPLER_LOGPROBS].values, atol=TOLERANCE, rtol=0)
    expected = expected_logprobs(engine_folder, plain.rollouts, engine.sampling)
    assert largest_differences(scores.rows(), expected) < TOLERANCE


def test_a_response_that_fills_the_context_has_a_score(engine, engine_folder):
    filled = engine.generate(asked([[5] * (CONTEXT - 3), [5, 6]]), Sampling(top_k=50))
    filled = filled.with_columns({TOKENS: [[9, 8, 7], *tokens_of(filled)[1:]]})
    expected = expected_logprobs(engine_folder, filled, engine.sampling)
    assert largest_differences(engine.score(filled).rows(), expected) < TOLERANCE
    resumed = engine.generate(asked([[5] * (CONTEXT - 3)], prefixes=[[40]], budgets=[9]), Sampling(temperature=0))
    assert resumed[TOKENS].length_B.tolist() == resumed[SAMPLER_LOGPROBS].length_B.tolist() == [3]


UNSCORABLE = [
    ([5] * 100, [9] * (CONTEXT - 99), f"prompt and response have {CONTEXT + 1} tokens, and the model's context is"),
    ([5, VOCABULARY], [9], f"token {VOCABULARY} is none of the model's {VOCABULARY}"),
    ([5], [9, -1], f"token -1 is none of the model's {VOCABULARY}"),
    ([], [9], "the prompt is empty"),
]


@pytest.mark.parametrize(("prompt", "response", "why"), UNSCORABLE, ids=["long", "prompt", "response", "empty"])
def test_a_response_that_cannot_be_scored_is_named_by_its_row_and_does_no_harm(engine, plain, prompt, response, why):
    batch = asked([[5], prompt, [6]]).with_columns({TOKENS: [[9], response, [8]]})
    with pytest.raises(ValueError, match=f"row 1 cannot be scored: {why}"):
        engine.score(batch)
    assert tokens_of(engine.generate(plain.batch)) == tokens_of(plain.rollouts)


def test_an_empty_response_has_an_empty_score(engine, plain):
    emptied = plain.rollouts.with_columns({TOKENS: [[], *tokens_of(plain.rollouts)[1:]]})
    scores = engine.score(emptied)
    assert scores.length_B.tolist() == [0, *plain.rollouts[TOKENS].length_B.tolist()[1:]]


def test_every_token_and_row_carries_the_version_that_wrote_it(contestant, engine_folder, tmp_path, plain):
    assert set(plain.rollouts[VERSION].tolist()) == set(plain.rollouts[TOKEN_VERSIONS].values.tolist()) == {3}
    contestant.publish(model_folder(tmp_path, seed=9), 4)
    newer = contestant.engine.generate(plain.batch)
    assert set(newer[VERSION].tolist()) == set(newer[TOKEN_VERSIONS].values.tolist()) == {4}
    assert tokens_of(newer) != tokens_of(plain.rollouts)
    contestant.publish(engine_folder, 5)
    assert tokens_of(contestant.engine.generate(plain.batch)) == tokens_of(plain.rollouts)


def test_an_empty_batch_comes_back_empty(engine, plain):
    nothing = plain.batch.where(torch.zeros(20, dtype=torch.bool))
    rollouts = engine.generate(nothing)
    assert len(rollouts) == 0
    assert all(column in rollouts for column in WRITTEN)
    assert len(engine.score(rollouts).values) == 0


def test_a_request_that_cannot_be_written_fails_alone_and_says_why(engine):
    rollouts = engine.generate(asked([[5, 6], [5] * CONTEXT, [], [5, VOCABULARY], [7]]))
    assert rollouts.strings(STATUS) == ["ok", "failed", "failed", "failed", "ok"]
    assert f"{CONTEXT} tokens" in rollouts.strings(ERROR)[1]
    assert "empty" in rollouts.strings(ERROR)[2]
    assert rollouts.strings(ERROR)[3]
    assert rollouts[TOKENS].length_B.tolist()[1:4] == [0, 0, 0]
    assert rollouts[SAMPLER_LOGPROBS].length_B.tolist()[1:4] == [0, 0, 0]
    assert rollouts.strings(FINISH)[1:4] == ["abort"] * 3


@pytest.mark.parametrize("with_logprobs", [True, False])
def test_a_prefix_that_cannot_be_gone_on_with_fails_alone_and_says_why(engine, with_logprobs):
    prefixes = [[9], [9] * (CONTEXT - 99), [9] * (CONTEXT - 100), [VOCABULARY]]
    batch = asked([[5], [5] * 100, [5] * 100, [5]], prefixes=prefixes)
    if with_logprobs:
        batch = batch.with_columns({PREFIX_LOGPROBS: [[-0.5] * len(prefix) for prefix in prefixes]})
    rollouts = engine.generate(batch)
    assert rollouts.strings(STATUS) == ["ok", "failed", "ok", "failed"]
    assert (
        rollouts.strings(ERROR)[1]
        == f"prompt and prefix have {CONTEXT + 1} tokens, and the model's context is {CONTEXT}"
    )
    assert rollouts.strings(ERROR)[3] == f"token {VOCABULARY} is none of the model's {VOCABULARY}"
    assert rollouts[TOKENS].length_B.tolist()[1:] == [0, CONTEXT - 100, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_fail_each_request_by_name(contestant, engine_folder, tmp_path, plain, temperature):
    contestant.publish(broken_folder(tmp_path), 8)
    rollouts = contestant.engine.generate(plain.batch, Sampling(temperature=temperature))
    assert rollouts.strings(STATUS) == ["failed"] * 20
    assert all("response token 0" in error and "nan" in error for error in rollouts.strings(ERROR))
    contestant.publish(engine_folder, 9)
    assert tokens_of(contestant.engine.generate(plain.batch)) == tokens_of(plain.rollouts)


def test_progress_ends_at_everything(engine, plain):
    told = []
    engine.progress = lambda done, total, tokens: told.append((done, total, tokens))
    rollouts = engine.generate(plain.batch)
    engine.progress = None
    assert told[-1] == (20, 20, len(rollouts[TOKENS].values))


def test_nothing_is_served_after_a_sync_that_broke_off_until_one_succeeds(contestant, engine_folder, plain):
    contestant.fail_to_publish(6)
    for ask in (contestant.engine.generate, contestant.engine.score):
        with pytest.raises(RuntimeError, match="no whole version of the weights"):
            ask(plain.rollouts)
    contestant.publish(engine_folder, 7)
    assert tokens_of(contestant.engine.generate(plain.batch)) == tokens_of(plain.rollouts)


def test_an_engine_refuses_to_serve_before_it_was_given_weights(contestant):
    assert "no whole version of the weights; publish one before" in contestant.refusal
