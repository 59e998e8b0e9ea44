import json

import pytest

from megatron_rl.spec.files import read_model_config
from megatron_rl.spec.load import load
from megatron_rl.spec.schema import SpecError
from tests.spec.test_load import WHOLE, write


def spec_of(tmp_path, folder):
    return load(write(tmp_path, "run.yaml", WHOLE), [f"model.folder={folder}"])


def test_the_models_config_is_read(tmp_path):
    write(tmp_path, "model/config.json", json.dumps({"model_type": "qwen3"}))
    assert read_model_config(spec_of(tmp_path, tmp_path / "model")) == {"model_type": "qwen3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "which holds no config.json"), ("{", "config.json cannot be read"), ("[1]", "should hold an object")],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, content, said):
    (tmp_path / "model").mkdir()
    if content is not None:
        write(tmp_path, "model/config.json", content)
    with pytest.raises(SpecError, match=rf"'model.folder' is '.*model', .*{said}"):
        read_model_config(spec_of(tmp_path, tmp_path / "model"))


def test_a_missing_folder_names_those_beside_it(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SpecError, match=r"is no folder here; beside it are model\."):
        read_model_config(spec_of(tmp_path, tmp_path / "modle"))
