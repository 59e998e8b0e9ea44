import pytest

from tests.fakes.tiny_models import tiny_folder
from tools import convert_checkpoint


def test_a_folder_travels_there_and_back(tmp_path, capsys):
    source = tiny_folder(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    assert convert_checkpoint.main([str(source), str(tmp_path / "there"), "--tp", "2", "--pp", "2"]) == 0
    assert convert_checkpoint.main([str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    for path in source.iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes(), path.name
    assert "verified" in capsys.readouterr().out


def test_help_shows_an_example_of_either_direction(capsys):
    with pytest.raises(SystemExit):
        convert_checkpoint.main(["--help"])
    printed = capsys.readouterr().out
    assert "convert_checkpoint.py models/qwen3-8b checkpoints/qwen3-8b --tp 2 --pp 4" in printed
    assert "--like models/qwen3-8b" in printed
