import os
import sys

from megatron_rl.telemetry.jsonl import read_history
from megatron_rl.telemetry.rollouts import rollout_files
from megatron_rl.telemetry.settings import TelemetrySettings, open_telemetry
from tests.fakes.run_folder import piece, rollout_batch, step_record


def test_the_defaults_keep_metrics_and_rollouts_and_print(tmp_path, capsys):
    run = open_telemetry(TelemetrySettings(), tmp_path / "toy", spec={}, piece=piece)
    run.start(0, 1)
    run.step(step_record(1), rollout_batch(1))
    run.close("finished")
    assert [point.step for point in read_history(tmp_path / "toy").points] == [1]
    assert list(rollout_files(tmp_path / "toy")) == [1]
    assert "step 1/1" in capsys.readouterr().out


def test_a_console_that_cannot_be_written_any_more_is_told_elsewhere_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        run = open_telemetry(TelemetrySettings(), tmp_path, spec={}, piece=piece)
        run.start(0, 1)
        run.step(step_record(1), rollout_batch(1))
        assert [point.step for point in read_history(tmp_path).points] == [1]
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    told = capsys.readouterr().err
    assert "ConsoleView failed and is left out from here on" in told
    assert "No space left on device" in told


def test_rollouts_are_thinned_as_asked(tmp_path):
    run = open_telemetry(TelemetrySettings(rollouts_every=2), tmp_path, spec={}, piece=piece)
    run.start(0, 4)
    for step in range(1, 5):
        run.step(step_record(step), rollout_batch(step))
    assert list(rollout_files(tmp_path)) == [2, 4]
