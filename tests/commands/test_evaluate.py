import json

from megatron_rl.cli import main
from megatron_rl.commands.evaluate import table
from megatron_rl.commands.exits import DONE, WRONG
from megatron_rl.ports import Evaluation
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_a_checkpoint_is_measured_as_the_run_measured_it(trained, capfd):
    assert main(["evaluate", str(trained), "--step", "2"]) == DONE
    kept = json.loads((trained / "evaluations/step_000002.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [line for line in lines if line["kind"] == "evaluation" and line["step"] == 2]
    assert kept["step"] == 2
    assert any(name.endswith("pass@1") for name in kept["metrics"])
    for name, value in kept["metrics"].items():
        assert any(key.endswith(name) and measured[key] == value for key in measured), name
    assert "pass@1" in capfd.readouterr().out


def test_a_configuration_measures_its_model(data, tmp_path, capfd):  # noqa: F811
    spec(data, tmp_path)
    assert main(["evaluate", str(tmp_path / "run.yaml"), "evaluation.samples=2"]) == DONE
    assert "pass@2" in capfd.readouterr().out
    assert (tmp_path / "run/evaluations/step_000000.json").is_file()


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(trained, capsys):
    assert main(["evaluate", str(trained), "--step", "9"]) == WRONG
    assert "no checkpoint of step 9; there is step_000002, step_000003" in capsys.readouterr().err


def test_measures_with_an_interval_show_it():
    found = Evaluation(step=3, metrics={"toy/pass@1": 0.5, "toy/pass@1/low": 0.4, "toy/pass@1/high": 0.6})
    assert table(found)[1].split() == ["toy/pass@1", "0.5000", "[0.4000,", "0.6000]"]
