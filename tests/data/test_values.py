import pytest

from megatron_rl.data.values import read_values, write_values
from megatron_rl.spec.earlier import completed_section

MADE = {
    "model": {"folder": "here"},
    "sampling": {"temperature": 1.0},
    "weights": "9f86",
    "architecture": "d081",
    "tokenizer": "884c",
}
DATED = {"model": {"folder": "here"}, "sampling": {"temperature": 1.0}}


def test_rewards_come_back_under_the_same_circumstances_wherever_the_model_lies(tmp_path, capsys):
    write_values(tmp_path / "values.parquet", {"a": [1.0, 0.0], "b": [0.0]}, MADE)
    moved = MADE | {"model": {"folder": "there"}}
    assert read_values(tmp_path / "values.parquet", moved) == {"a": [1.0, 0.0], "b": [0.0]}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "now",
    [{"sampling": {"temperature": 0.7}}, {"weights": "0000"}, {"tokenizer": "0000"}, {"architecture": "0000"}],
    ids=lambda now: next(iter(now)),
)
def test_other_circumstances_are_named(tmp_path, now):
    write_values(tmp_path / "values.parquet", {"a": [1.0]}, MADE)
    with pytest.raises(ValueError, match=f"made with other {next(iter(now))};"):
        read_values(tmp_path / "values.parquet", MADE | now)


def test_what_a_section_has_learnt_since_was_at_its_default_then(tmp_path):
    write_values(tmp_path / "values.parquet", {"a": [1.0]}, MADE)
    now = completed_section("sampling", MADE["sampling"])
    assert len(now) > len(MADE["sampling"])
    assert read_values(tmp_path / "values.parquet", MADE | {"sampling": now}) == {"a": [1.0]}
    with pytest.raises(ValueError, match="made with other sampling;"):
        read_values(tmp_path / "values.parquet", MADE | {"sampling": now | {"top_k": 5}})


def test_a_file_that_knows_its_model_by_the_folder_is_read_where_that_is_the_same_and_says_so(tmp_path, capsys):
    write_values(tmp_path / "values.parquet", {"a": [1.0]}, DATED)
    assert read_values(tmp_path / "values.parquet", MADE) == {"a": [1.0]}
    assert "by its folder, not by its weights" in capsys.readouterr().err
    with pytest.raises(ValueError, match="made with other model;"):
        read_values(tmp_path / "values.parquet", MADE | {"model": {"folder": "there"}})
