import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_rl.reshard.layout import ModelShape
from megatron_rl.rollout.fused_weights import FusedWeights
from megatron_rl.rollout.hf_folder import read_weights
from megatron_rl.spec.schema import SpecError
from tests.fakes.tiny_models import tiny_folder


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model", "llama")


def read(folder):
    shape = ModelShape.of(json.loads((folder / "config.json").read_text()))
    fused = FusedWeights.empty(shape, torch.float32, torch.device("cpu"))
    read_weights(folder, shape, fused.parameters)
    return {key.name: view for key, view in fused.parameters.items()}


def test_every_tensor_is_read_also_from_several_files(folder):
    whole = load_file(folder / "model.safetensors")
    assert all(torch.equal(view, whole[name]) for name, view in read(folder).items())
    names = sorted(whole)
    save_file({name: whole[name] for name in names[:5]}, folder / "a.safetensors")
    save_file({name: whole[name] for name in names[5:]}, folder / "b.safetensors")
    files = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(view, whole[name]) for name, view in read(folder).items())


def test_a_missing_file_tensor_or_another_shape_is_named(folder):
    whole = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**whole, name: whole[name][:3].clone()}, folder / "model.safetensors")
    with pytest.raises(SpecError, match=r"up_proj\.weight' is \(3, 64\), expected \(96, 64\)"):
        read(folder)
    save_file({key: tensor for key, tensor in whole.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(SpecError, match="has no tensor"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match="neither"):
        read(folder)
