import math

import pytest

from megatron_rl.ports import StepRecord
from megatron_rl.telemetry import curves
from megatron_rl.telemetry.curves import read_curves
from megatron_rl.telemetry.fanout import Fanout
from megatron_rl.telemetry.jsonl import JsonlFile
from tests.fakes.run_folder import rollout_batch, write_run


def write_losses(folder, losses):
    run = Fanout(folder=folder, required=[JsonlFile()])
    run.start(0, len(losses))
    batch = rollout_batch(1, groups=1)
    for step, loss in enumerate(losses, start=1):
        metrics = {} if loss is None else {"loss": loss}
        run.step(StepRecord(step=step, seconds={"update": 2.0}, metrics=metrics, rollouts=4), batch)


def test_every_curve_has_a_value_a_step_on_three_axes(tmp_path):
    run = read_curves(write_run(tmp_path / "toy", steps=12))
    assert run.name == "toy"
    assert run.step == list(range(1, 13))
    assert run.tokens == sorted(run.tokens)
    assert run.seconds == sorted(run.seconds)
    assert {len(curve) for curve in (*run.metrics.values(), *run.phases.values())} == {12}
    assert run.rollouts == 12 * 24


def test_an_evaluation_stands_where_its_step_ended(tmp_path):
    run = read_curves(write_run(tmp_path, steps=12))
    ours = [one for one in run.measured if (one.source, one.measure) == ("arithmetic", "pass@1")]
    assert [one.step for one in ours] == [0, 2, 4, 6, 8, 10, 12]
    assert (ours[0].tokens, ours[0].seconds) == (0, 0.0)
    assert (ours[-1].tokens, ours[-1].seconds) == (run.tokens[-1], run.seconds[-1])
    assert all(one.low <= one.value <= one.high for one in ours)


def test_missing_and_infinite_numbers_are_gaps_and_counted(tmp_path):
    write_losses(tmp_path, [1.0, None, math.nan, math.inf, 5.0])
    run = read_curves(tmp_path)
    assert run.metrics["loss"] == [1.0, None, None, None, 5.0]
    assert run.not_finite == 2


def test_a_long_run_is_drawn_as_means_over_equal_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MOST_POINTS", 3)
    write_losses(tmp_path, [1.0, 3.0, None, 7.0, 9.0])
    run = read_curves(tmp_path)
    assert run.step == [2, 4, 5]
    assert run.metrics["loss"] == [2.0, 7.0, 9.0]
    assert run.seconds == [4.0, 8.0, 10.0]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no metrics\.jsonl"):
        read_curves(tmp_path)
