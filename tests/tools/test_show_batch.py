import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megatron_rl.batch.columns import TOKENS
from tests.fakes.run_folder import rollout_batch, write_run
from tools import show_batch

TOOL = Path(show_batch.__file__)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "toy", steps=1, wicked=True)
    return folder / "rollouts" / "step_000001.parquet"


def shown(*arguments, width=160):
    console = Console(file=io.StringIO(), width=width)
    code = show_batch.main([str(argument) for argument in arguments], console)
    return code, console.file.getvalue()


def test_a_table_has_a_line_a_rollout(saved):
    code, text = shown(saved, "--rows", 5)
    assert code == 0
    assert "24 rollouts" in text
    assert "shrinkage/weight_mean" in text
    assert [line.split()[0] for line in text.splitlines()[4:9]] == list("01234")


def test_a_row_is_shown_with_its_tokens_and_log_probabilities(saved):
    _, text = shown(saved, "--row", 1)
    batch = rollout_batch(1, wicked=True)
    assert f"{len(batch.ragged(TOKENS).row(1))} tokens" in text
    assert "sampler_logprobs" in text
    assert "<eos>" in text
    assert "prompt_id  arith-0-1-0" in text


def test_columns_are_chosen_by_name(saved):
    _, text = shown(saved, "--columns", "reward", "version")
    assert "version" in text
    assert "prompt_id" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--row", "99"], "--row must be one of 0..23, got 99"),
        (["--columns", "rewrad"], "the batch has no column 'rewrad'; it has"),
    ],
)
def test_a_mistake_is_one_sentence(saved, capsys, arguments, sentence):
    assert shown(saved, *arguments)[0] == 1
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_no_batch_is_named(tmp_path, capsys):
    (tmp_path / "x.parquet").write_text("hello")
    assert shown(tmp_path / "x.parquet")[0] == 1
    assert "x.parquet as a batch" in capsys.readouterr().err
    assert shown(tmp_path)[0] == 1
    assert "is a folder; name one of its files" in capsys.readouterr().err


def test_help_shows_an_example(saved):
    done = subprocess.run(
        [sys.executable, TOOL, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(TOOL.parents[1])},
    )
    assert "--row 3" in done.stdout
