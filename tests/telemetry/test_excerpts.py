import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import ADVANTAGE, RESPONSE_TEXT, SAMPLER_LOGPROBS, TOKENS
from megatron_rl.batch.ragged import Ragged
from megatron_rl.telemetry.excerpts import Bounds, excerpt
from megatron_rl.telemetry.rollouts import FOLDER
from tests.fakes.run_folder import piece, rollout_batch, write_run


def write_batch(folder, batch, step=1):
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    batch.write_parquet(folder / FOLDER / f"step_{step:06d}.parquet")
    return folder


def test_a_rollout_is_shown_as_it_was_written(tmp_path):
    write_run(tmp_path, steps=1)
    batch, shown = rollout_batch(1), excerpt(tmp_path, Bounds())
    first = shown.groups[0].rollouts[0]
    tokens = batch.ragged(TOKENS).row(0).tolist()
    assert [shown.pieces[place] for place in first.token] == [piece(token) for token in tokens]
    logprobs = batch.ragged(SAMPLER_LOGPROBS).row(0)
    torch.testing.assert_close(torch.tensor(first.surprise) / -100, logprobs, atol=0.0051, rtol=0)
    assert first.advantage == [pytest.approx(float(batch.ragged(ADVANTAGE).row(0)[0]), abs=1e-4)]


def test_steps_are_spread_evenly_with_the_first_and_the_last(tmp_path):
    write_run(tmp_path, steps=11)
    shown = excerpt(tmp_path, Bounds(steps=3, groups=1))
    assert [group.step for group in shown.groups] == [1, 6, 11]
    assert shown.steps_kept == 11


def test_no_bound_is_exceeded(tmp_path):
    write_run(tmp_path, steps=4)
    bounds = Bounds(steps=2, groups=3, mates=2, tokens=6, total_tokens=40)
    shown = excerpt(tmp_path, bounds)
    assert {group.step for group in shown.groups} == {1, 4}
    assert all(len(group.rollouts) == 2 and group.size == 4 for group in shown.groups)
    assert all(len(rollout.token) <= 6 for group in shown.groups for rollout in group.rollouts)
    assert sum(len(rollout.token) for group in shown.groups for rollout in group.rollouts) <= 40


def test_a_long_response_keeps_its_start_and_its_end(tmp_path):
    batch = Batch.of({TOKENS: [list(range(100))], SAMPLER_LOGPROBS: [[-t / 100 for t in range(100)]]})
    shown = excerpt(write_batch(tmp_path, batch), Bounds(tokens=9))
    rollout = shown.groups[0].rollouts[0]
    assert rollout.surprise == [0, 1, 2, 3, 4, 5, 97, 98, 99]
    assert (rollout.gap, rollout.length) == (6, 100)


def test_without_token_texts_the_decoded_response_is_shown(tmp_path):
    batch = Batch.of({TOKENS: [[7, 8]], RESPONSE_TEXT: ["hi"]})
    shown = excerpt(write_batch(tmp_path, batch), Bounds())
    assert shown.groups[0].rollouts[0].text == "hi"
    assert shown.pieces == ["⟨7⟩", "⟨8⟩"]


def test_token_advantages_and_infinities_are_plain_numbers(tmp_path):
    batch = Batch.of(
        {
            TOKENS: [[1, 2, 3]],
            SAMPLER_LOGPROBS: Ragged.of([[-float("inf"), float("nan"), -0.5]], torch.float32),
            ADVANTAGE: [[0.5, -1.0, 2.0]],
        }
    )
    rollout = excerpt(write_batch(tmp_path, batch), Bounds()).groups[0].rollouts[0]
    assert rollout.surprise == [9999, 0, 50]
    assert rollout.advantage == [0.5, -1.0, 2.0]


def test_a_folder_without_rollouts_shows_none(tmp_path):
    assert excerpt(tmp_path, Bounds()).groups == []
