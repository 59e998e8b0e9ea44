import pytest
import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import (
    CORRECT,
    FINISH,
    GROUP,
    LOSS_MASK,
    OLD_LOGPROBS,
    REFERENCE_LOGPROBS,
    REUSED,
    REWARD,
    SAMPLER_LOGPROBS,
    STATUS,
    TOKENS,
    VERDICT,
)
from megatron_rl.batch.ragged import Ragged
from megatron_rl.telemetry.metrics import batch_metrics

BATCH = Batch.of(
    {
        GROUP: [4, 4, 9, 9],
        TOKENS: [[1, 2], [3], [4, 5, 6], []],
        STATUS: ["ok", "ok", "ok", "failed"],
        FINISH: ["stop", "length", "stop", "abort"],
        REWARD: [1.0, 0.5, 0.0, 0.0],
        CORRECT: [1, 1, 0, 0],
        VERDICT: ["right", "right", "wrong", "crashed"],
    }
)


def logprobs(*rows: list[float]) -> Ragged:
    return Ragged.of(rows, torch.float32)


def test_a_failed_rollout_counts_as_failed_and_in_nothing_else():
    facts = batch_metrics(BATCH)
    assert facts["rollouts/failed"] == 0.25
    assert facts["reward/mean"] == 0.5
    assert facts["length/mean"] == 2.0
    assert facts["length/max"] == 3.0
    assert facts["length/cut"] == pytest.approx(1 / 3)
    assert facts["verdict/right"] == pytest.approx(2 / 3)
    assert facts["verdict/crashed"] == 0.0


def test_groups_that_agree_are_counted():
    facts = batch_metrics(BATCH)
    assert (facts["groups/solved"], facts["groups/unsolved"]) == (0.5, 0.5)


def test_parity_looks_at_live_tokens_the_engine_wrote_in_this_step():
    batch = BATCH.with_columns(
        {
            SAMPLER_LOGPROBS: logprobs([-1, -1], [-1], [-1, -1, -1], []),
            OLD_LOGPROBS: logprobs([-9, -1.25], [-1.5], [-9, -1, -1], []),
            REUSED: [1, 0, 0, 0],
            LOSS_MASK: [[1, 1], [1], [0, 1, 1], []],
        }
    )
    facts = batch_metrics(batch)
    assert facts["parity/mean"] == pytest.approx(0.75 / 4)
    assert facts["parity/max"] == pytest.approx(0.5)
    assert facts["parity/p99"] == pytest.approx(0.5)


def test_one_token_in_a_hundred_is_beyond_the_99th_percentile():
    gaps = [0.0] * 98 + [0.25, 1.0]
    batch = Batch.of({SAMPLER_LOGPROBS: logprobs([0.0] * 100), OLD_LOGPROBS: logprobs(gaps)})
    assert batch_metrics(batch)["parity/p99"] == 0.25


def test_divergence_from_the_reference_is_the_k3_estimate():
    same = BATCH.with_columns({SAMPLER_LOGPROBS: logprobs([-1, -1], [-1], [-1, -1, -1], [])})
    assert batch_metrics(same.with_columns({REFERENCE_LOGPROBS: same.ragged(SAMPLER_LOGPROBS)}))["kl/reference"] == 0.0
    apart = same.with_columns({REFERENCE_LOGPROBS: logprobs([-2, -2], [-2], [-2, -2, -2], [])})
    assert batch_metrics(apart)["kl/reference"] == pytest.approx(0.36788, abs=1e-5)  # exp(-1) + 1 - 1


def test_a_batch_says_only_what_it_has_columns_for():
    assert batch_metrics(Batch.of({REWARD: [1.0]})) == {"rollouts/failed": 0.0, "reward/mean": 1.0, "reward/std": 0.0}
    assert batch_metrics(Batch.of({REWARD: []})) == {}


def test_a_batch_of_failures_still_has_a_failure_share():
    assert batch_metrics(Batch.of({REWARD: [0.0], STATUS: ["failed"]})) == {"rollouts/failed": 1.0}
