import json

import pytest

from megatron_rl.cli import main
from megatron_rl.commands.exits import DONE, FAILED, WRONG
from megatron_rl.data.generate import GENERATED
from megatron_rl.data.published import PUBLISHED
from tests.data.test_published import KNIGHTS


def test_prompts_are_made_offline(tmp_path, capsys):
    target = tmp_path / "prompts.parquet"
    assert main(["data", "arithmetic", str(target), "--count", "5"]) == DONE
    assert capsys.readouterr().out == f"5 prompts written to {target}\n"


def test_help_names_every_set(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in (*PUBLISHED, *GENERATED))


def test_the_number_of_files_must_fit(tmp_path, capsys):
    assert main(["data", "arithmetic", "one", "two"]) == WRONG
    assert "data arithmetic takes TARGET alone, got 2 files" in capsys.readouterr().err


def test_knights_are_made_or_converted_by_how_many_files_are_named(tmp_path, capsys):
    source, target = tmp_path / "people2.jsonl", tmp_path / "prompts.parquet"
    source.write_text(json.dumps(KNIGHTS))
    assert main(["data", "knights", str(source), str(target)]) == DONE
    assert main(["data", "knights", str(target), "--count", "2"]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        "1 prompts written, 0 duplicates and 0 malformed left out",
        f"2 prompts written to {target}",
    ]


def test_a_source_that_is_not_there_is_said_so(tmp_path, capsys):
    assert main(["data", "gsm8k", str(tmp_path / "nowhere.jsonl"), str(tmp_path / "out.parquet")]) == FAILED
    assert "nowhere.jsonl" in capsys.readouterr().err
