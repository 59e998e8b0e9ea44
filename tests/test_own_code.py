import hashlib
import json
import sys
from types import SimpleNamespace

import pytest

from megatron_rl.own_code import own_code, told


def part(name: str, target: str = "", **values: object) -> SimpleNamespace:
    return SimpleNamespace(name=name, target=target or name, values=values)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run with a stage and a reward of the user's own."""
    (tmp_path / "code_of_mine.py").write_text("def score(question): ...\nclass MyStage: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield SimpleNamespace(
        choices={
            "sampler": part("uniform", "megatron_rl.samplers.uniform:Uniform"),
            "reward": part("function", "megatron_rl.rewards.function:Function", path="code_of_mine:score"),
        },
        chains={"learn": (part("code_of_mine:MyStage"), part("advantage", "megatron_rl.stages.advantage:Advantage"))},
    )
    sys.modules.pop("code_of_mine", None)


def test_every_import_path_is_told_with_its_file_and_hash(made, tmp_path):
    file = tmp_path / "code_of_mine.py"
    said = f"{file} sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert own_code(made) == {"code_of_mine:MyStage": said, "code_of_mine:score": said}
    assert "code_of_mine" not in sys.modules, "it was run to be told"


def test_code_that_changed_since_the_run_began_is_told(made, tmp_path, capsys):
    before, record = own_code(made), tmp_path / "environment.json"
    told(before, record)
    assert "last trained in" not in capsys.readouterr().err
    record.write_text(json.dumps(before))
    (tmp_path / "code_of_mine.py").write_text("def score(question): return 1\nclass MyStage: ...\n")
    told(own_code(made), record)
    assert capsys.readouterr().err.count("when this folder was last trained in") == 2


@pytest.mark.parametrize("damaged", ["", "[]", '{"torch'])
def test_a_damaged_record_says_nothing(made, tmp_path, capsys, damaged):
    (tmp_path / "environment.json").write_text(damaged)
    told(own_code(made), tmp_path / "environment.json")
    assert "last trained in" not in capsys.readouterr().err
