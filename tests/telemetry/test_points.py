import pytest

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import REUSED, REWARD, TOKENS, VERSION
from megatron_rl.ports import Evaluation, StepRecord
from megatron_rl.telemetry.points import Totals, WaveCount, evaluation_of, flat, point_of, totals, written_tokens

BATCH = Batch.of({TOKENS: [[1, 2, 3], [4]], REUSED: [2, 0], REWARD: [1.0, 0.0], VERSION: [6, 7]}).with_metrics(
    {"stage/x": 3.0}
)


def record(**metrics):
    seconds, parts = {"collect": 2.0, "update": 1.0}, {"collect/sampler": 0.25, "collect/generate": 1.5}
    return StepRecord(step=8, seconds=seconds, parts=parts, metrics=metrics, rollouts=2)


def test_a_point_is_at_the_totals_it_brings_about():
    point = Totals(tokens=100, seconds=10.0).point(record(), BATCH, tokens=20)
    assert (point.tokens, point.total_tokens, point.total_seconds) == (20, 120, 13.0)
    assert totals(point) == Totals(tokens=120, seconds=13.0)
    assert point.version == 7


def test_stage_metrics_are_kept_and_the_loop_has_the_last_word():
    point = Totals().point(record(**{"reward/mean": -1.0}), BATCH, tokens=0)
    assert point.metrics["stage/x"] == 3.0
    assert point.metrics["reward/mean"] == -1.0
    assert point.metrics["reward/std"] == 0.5


def test_a_rollout_that_failed_makes_no_point_newer():
    mixed = BATCH.with_columns(status=["ok", "failed"])
    assert Totals().point(record(), mixed, tokens=0).version == 6


def test_flat_and_back_is_the_same_point():
    point = Totals(tokens=5, seconds=0.25).point(record(loss=0.5), BATCH, tokens=3)
    assert point_of(flat(point)) == point


def test_parts_stand_beside_their_phases_and_add_nothing_to_the_total():
    numbers = flat(Totals().point(record(), BATCH, tokens=0))
    assert (numbers["seconds/collect"], numbers["seconds/collect/generate"]) == (2.0, 1.5)
    assert numbers["total_seconds"] == 3.0


def test_flat_and_back_is_the_same_evaluation():
    evaluation = Evaluation(step=4, metrics={"a/b/pass@1": 0.5, "a/b/pass@1/low": 0.25})
    assert evaluation_of(flat(evaluation)) == evaluation


@pytest.mark.parametrize(
    ("seen", "tokens"),
    [
        ([(0, 0), (2, 30), (4, 50)], 50),
        ([(4, 50), (0, 0), (4, 40)], 90),
        ([(4, 50), (1, 60), (4, 70)], 120),
    ],
)
def test_waves_of_a_step_add_up(seen, tokens):
    count = WaveCount()
    for done, written in seen:
        count = count.seen(done, written)
    assert count.tokens == tokens


def test_of_a_wave_that_outlives_its_step_the_next_step_counts_what_is_written_then():
    count = WaveCount().seen(4, 50).seen(1, 30)
    assert count.tokens == 80
    after = count.told()
    assert [after.tokens, after.seen(2, 45).tokens, after.seen(2, 45).seen(0, 5).tokens] == [0, 15, 20]


def test_drafted_tokens_are_not_written_tokens():
    assert written_tokens(BATCH) == 2
