import json
from pathlib import Path

import pytest

from megatron_rl.commands.configuration import checked, folder_of
from megatron_rl.spec import files
from megatron_rl.spec.schema import SpecError
from tests.test_launch import data, spec  # noqa: F401  # data is a fixture


def test_a_run_lives_in_a_folder_of_its_name(data, tmp_path):  # noqa: F811
    spec(data, tmp_path)
    assert folder_of(checked(tmp_path / "run.yaml", ["run.name=other"])) == Path(tmp_path / "other")


def test_a_cut_that_the_model_does_not_have_is_refused_with_the_file(data, tmp_path):  # noqa: F811
    spec(data, tmp_path)
    with pytest.raises(SpecError, match=r"run\.yaml: .* do not divide over actor\.tp = 5"):
        checked(tmp_path / "run.yaml", ["actor.tp=5"])


def test_a_model_that_cannot_be_is_refused_with_its_folder(data, tmp_path):  # noqa: F811
    spec(data, tmp_path)
    (tmp_path / "odd").mkdir()
    config = json.loads((data / "model/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))
    with pytest.raises(SpecError, match=r"in the model folder '.*/odd', config\.json needs num_attention_heads as"):
        checked(tmp_path / "run.yaml", [f"model.folder={tmp_path}/odd"])


@pytest.mark.parametrize("section", ["sampling", "evaluation"])
def test_a_temperature_that_vllm_has_not_is_refused_before_anything_starts(data, tmp_path, monkeypatch, section):  # noqa: F811
    monkeypatch.setattr(files, "OPTIONAL", {})  # as where vLLM is installed
    spec(data, tmp_path)
    with pytest.raises(SpecError, match=rf"{section}\.temperature: vLLM draws .* not at 2\.5; choose another or"):
        checked(tmp_path / "run.yaml", ["rollout=vllm", f"{section}.temperature=2.5"])
