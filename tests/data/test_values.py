import pytest

from megatron_rl.data.values import read_values, write_values

MADE = {"model": "m", "sampling": {"temperature": 1.0}}


def test_rewards_come_back_under_the_same_circumstances(tmp_path):
    write_values(tmp_path / "values.parquet", {"a": [1.0, 0.0], "b": [0.0]}, MADE)
    assert read_values(tmp_path / "values.parquet", MADE) == {"a": [1.0, 0.0], "b": [0.0]}


def test_other_circumstances_are_named(tmp_path):
    write_values(tmp_path / "values.parquet", {"a": [1.0]}, MADE)
    with pytest.raises(ValueError, match="made with another sampling;"):
        read_values(tmp_path / "values.parquet", {"model": "m", "sampling": {"temperature": 0.7}})
