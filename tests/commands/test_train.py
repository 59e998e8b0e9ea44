import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from megatron_rl import launch
from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, INTERRUPTED, STOPPED, WRONG
from megatron_rl.occupancy import alone_in
from megatron_rl.spec import files
from megatron_rl.spec.load import SHIPPED
from tests.test_launch import data, digest, spec  # noqa: F401  # data is a fixture
from tests.test_occupancy import HASTE, dead


def test_a_dry_run_prints_the_run_and_what_it_would_take_and_starts_nothing(data, tmp_path, capsys):  # noqa: F811
    spec(data, tmp_path)
    assert main(["train", str(tmp_path / "run.yaml"), "--dry-run"]) == DONE
    out = capsys.readouterr().out
    assert "max_tokens: 8" in out
    assert "# 4 prompts x 4 samples = 16 rows" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learn=[advantage]", "stage 'advantage' reads 'baseline'"),
        ("learn=[]", "objective 'clipped' reads 'advantage'"),
        ("collect=[judge]", "stage 'judge' reads 'response_text'"),
        ("collect=[judge, generate]", "stage 'judge' reads 'response_text'"),
        ("objective.clipped.low=-1", "objective clipped needs 0 <= low <= 1"),
        ("objective.clipped.low=.inf", "objective clipped needs 0 <= low <= 1"),
        ("objective.clipped.low=1e400", "objective clipped needs 0 <= low <= 1"),
        ("learn=[optimal_value]", "optimal_value"),
        ("learn=[old_logprobs, critic.value, generalised_advantage]", "'critic.value' needs 'critic.update' beside it"),
        ("learn=[{smoothed_stats: {alpha: 2.0}}, advantage]", "should be a number at least 0 and at most 1 or '1/n'"),
        ("sampler={prioritised: {exponent: -1.0}}", "'sampler.exponent' should be a number at least 0"),
        ("sampling.temperature=.nan", "'sampling.temperature' should be a number at least 0 and below inf"),
        ("sampling.temperature=.inf", "'sampling.temperature' should be a number at least 0 and below inf"),
        ("evaluation.temperature=.inf", "'evaluation.temperature' should be a number at least 0 and below inf"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(data, tmp_path, capsys, setting, said):  # noqa: F811
    spec(data, tmp_path)
    assert main(["train", str(tmp_path / "run.yaml"), "--dry-run", setting]) == WRONG
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    assert said in err


def test_a_dry_run_without_model_and_data_shows_the_run_before_it_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(SHIPPED / "grpo.yaml"), "--dry-run", "rollout=embedded"]) == WRONG
    out, err = capsys.readouterr()
    assert "group_baseline" in out
    assert "rows = " in out.splitlines()[-2]
    assert "processes: " in out.splitlines()[-1]
    assert "'model.folder' is 'models/Qwen2.5-Math-7B', which is no folder here" in err


def test_an_engine_whose_cut_the_model_does_not_have_is_refused_by_a_dry_run(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(files, "OPTIONAL", {})
    spec(data, tmp_path)
    assert main(["train", str(tmp_path / "run.yaml"), "--dry-run", "rollout={vllm: {tp: 7}}"]) == WRONG
    assert "run.yaml: " in capsys.readouterr().err


def test_a_later_attempt_of_a_job_is_not_kept_out_by_one_that_died_with_its_machine(data, tmp_path, monkeypatch, capfd):  # noqa: F811
    spec(data, tmp_path)
    command = ["train", str(tmp_path / "run.yaml"), "--until", "0", "--attempt"]
    monkeypatch.setattr(launch, "alone_in", partial(alone_in, patience=HASTE))
    (tmp_path / "run").mkdir()
    with dead(tmp_path / "run", "elsewhere 17 4711_3 0"):
        assert main([*command, "4711_3.1"]) == STOPPED
    with pytest.raises(SystemExit):
        main([*command, "4711"])
    assert "should be a job and a number, as 4711.0, got '4711'" in capfd.readouterr().err


def test_out_of_time_has_an_exit_code_of_its_own_and_says_how_to_go_on(data, tmp_path, capfd):  # noqa: F811
    spec(data, tmp_path)
    assert main(["train", str(tmp_path / "run.yaml"), "--until", "0"]) == STOPPED
    assert f"goes on with: megatron-rl train {tmp_path}/run.yaml" in capfd.readouterr().err


def test_who_looks_after_a_run_is_told_where_it_is(data, tmp_path, monkeypatch):  # noqa: F811
    spec(data, tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["train", str(tmp_path / "run.yaml"), "--until", "0", "--where", "here", "run.folder=."]
    assert main(command) == STOPPED
    assert (tmp_path / "here").read_text() == f"{tmp_path / 'run'}\n"


def test_a_run_interrupted_before_it_saved_begins_again(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    def interrupted(*_):
        raise KeyboardInterrupt

    spec(data, tmp_path)
    monkeypatch.setattr(launch, "train", interrupted)
    command = ["train", str(tmp_path / "run.yaml"), "learn=[old_logprobs, leave_one_out_baseline, advantage]"]
    assert main(command) == INTERRUPTED
    assert f"begins again with: megatron-rl train {tmp_path}/run.yaml 'learn=[old_" in capsys.readouterr().err
    (tmp_path / "run/checkpoints/step_000002").mkdir(parents=True)
    assert main(command) == INTERRUPTED
    assert "goes on from its last checkpoint with" in capsys.readouterr().err


def test_a_console_that_takes_nothing_more_does_not_end_a_run(data, tmp_path):  # noqa: F811
    spec(data, tmp_path)
    command = [sys.executable, "-m", "megatron_rl.cli", "train", str(tmp_path / "run.yaml"), "schedule.steps=1"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == DONE
    assert list((tmp_path).rglob("step_000001"))


def test_a_run_stopped_before_it_could_save_does_not_say_that_it_is_saved(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    spec(data, tmp_path)
    monkeypatch.setattr(launch, "train", lambda *_: "stopped by SIGTERM")
    assert main(["train", str(tmp_path / "run.yaml")]) == STOPPED
    assert "has nothing to save yet and begins again with: megatron-rl train" in capsys.readouterr().err
    (tmp_path / "run/checkpoints/step_000002").mkdir(parents=True)
    assert main(["train", str(tmp_path / "run.yaml")]) == STOPPED
    assert "is saved and goes on with: megatron-rl train" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_it_had_not_been(data, tmp_path):  # noqa: F811
    spec(data, tmp_path / "broken")
    endless = [tmp_path / "broken/run.yaml", "schedule.save_every=1", "schedule.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_rl.cli", "train", *endless],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        text=True,
    )
    latest = tmp_path / "broken/run/checkpoints/latest"
    end = time.monotonic() + 120
    while not latest.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert f"goes on from its last checkpoint with: megatron-rl train {tmp_path}/broken/run.yaml" in said
    step = int(latest.read_text().split()[0].removeprefix("step_")) + 1
    for name in ("straight", "broken"):
        launch.train(spec(data, tmp_path / name, "schedule.save_every=1", f"schedule.steps={step}"))
    assert digest(tmp_path / "straight/run", step) == digest(tmp_path / "broken/run", step)
