import pytest

from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, WRONG
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_every_prompt_is_valued_once(data, tmp_path, capfd):  # noqa: F811
    spec(data, tmp_path)
    target = tmp_path / "values.parquet"
    asked = ["values", str(tmp_path / "run.yaml"), f"data.values={target}", "--samples", "2"]
    assert main(asked) == DONE
    assert f"12 prompts valued in {target}" in capfd.readouterr().out
    assert target.is_file()


@pytest.mark.parametrize("settings", [()])
def test_a_run_that_names_no_file_for_values_is_refused(data, tmp_path, capsys, settings):  # noqa: F811
    spec(data, tmp_path)
    assert main(["values", str(tmp_path / "run.yaml"), *settings]) == WRONG
    assert "data.values is not set" in capsys.readouterr().err


def test_no_rollouts_are_no_values(capsys):
    assert main(["values", "configs/a_star_po.yaml", "--samples", "0"]) == WRONG
    assert capsys.readouterr().err == "--samples is 0, but must be at least 1.\n"
