import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from megatron_rl.data.fingerprint import BLOCK_BYTES, WHOLE_BYTES, model_fingerprint
from megatron_rl.spec.schema import SpecError

LARGE = 3 * WHOLE_BYTES // 4
"""Elements of a tensor in FP32 that is not hashed whole."""


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(LARGE, dtype=torch.float32), "norm": torch.ones(8), "b.weight": torch.eye(3)}


def model(folder, weights=None, **files):
    """A model folder; weights in two files where they are given as a pair."""
    folder.mkdir()
    written = {"config.json": {"hidden_size": 8}, "tokenizer.json": {"model": {}}, **files}
    for name, said in written.items():
        (folder / name).write_text(json.dumps(said))
    parts = weights if isinstance(weights, tuple) else (weights or tensors(),)
    if len(parts) == 1:
        save_file(parts[0], folder / "model.safetensors")
        return folder
    placed = {}
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        placed |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def fingerprint(folder):
    return model_fingerprint(folder, folder)


def differing(one, other) -> set[str]:
    ours, theirs = fingerprint(one), fingerprint(other)
    return {key for key in ours if ours[key] != theirs[key]}


def test_a_model_is_the_same_wherever_it_lies_and_however_it_is_cut_into_files(tmp_path):
    whole = model(tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "elsewhere")
    parts = tensors()
    cut = model(tmp_path / "cut", ({"norm": parts.pop("norm")}, parts))
    assert fingerprint(whole) == fingerprint(tmp_path / "elsewhere") == fingerprint(cut)


@pytest.mark.parametrize("place", [0, LARGE - 1, (LARGE - BLOCK_BYTES // 4) // 3 + 5], ids=["first", "last", "third"])
def test_other_numbers_in_a_block_of_a_large_tensor_are_another_model(tmp_path, place):
    changed = tensors()
    changed["a.weight"][place] = -1.0
    assert differing(model(tmp_path / "one"), model(tmp_path / "other", changed)) == {"weights"}


@pytest.mark.parametrize(
    "changed",
    [
        {"norm": torch.full((8,), 1.5)},
        {"norm": torch.ones(2, 4)},
        {"norm": torch.ones(8, dtype=torch.bfloat16)},
        {"another": torch.ones(8)},
    ],
    ids=["values", "shape", "type", "tensor"],
)
def test_a_small_tensor_that_differs_in_anything_is_another_model(tmp_path, changed):
    assert differing(model(tmp_path / "one"), model(tmp_path / "other", tensors() | changed)) == {"weights"}


def test_what_is_read_and_computed_counts_and_what_a_library_notes_for_itself_does_not(tmp_path):
    plain = model(tmp_path / "plain")
    noted = {"hidden_size": 8, "_name_or_path": "/there", "transformers_version": "5.1", "dtype": "float32"}
    assert differing(plain, model(tmp_path / "noted", **{"config.json": noted})) == set()
    wider = {"hidden_size": 8, "rope_theta": 1e6}
    assert differing(plain, model(tmp_path / "wider", **{"config.json": wider})) == {"architecture"}
    ending = {"eos_token_id": 7, "temperature": 0.6}
    assert differing(plain, model(tmp_path / "ending", **{"generation_config.json": ending})) == {"architecture"}
    warmer = {"temperature": 0.6}
    assert differing(plain, model(tmp_path / "warmer", **{"generation_config.json": warmer})) == set()
    templated = {"chat_template": "{{ messages }}"}
    assert differing(plain, model(tmp_path / "templated", **{"chat_template.json": templated})) == {"tokenizer"}


def test_a_reference_brings_weights_alone(tmp_path):
    started = model(tmp_path / "started")
    frozen = model(tmp_path / "frozen", tensors() | {"norm": torch.zeros(8)}, **{"tokenizer.json": {"model": 1}})
    found = model_fingerprint(started, frozen)
    assert found["weights"] == fingerprint(frozen)["weights"] != fingerprint(started)["weights"]
    assert found["tokenizer"] == fingerprint(started)["tokenizer"]


@pytest.mark.parametrize("damage", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"], ids=["empty", "endless", "no object"])
def test_what_is_no_safetensors_is_refused_in_one_sentence(tmp_path, damage):
    folder = model(tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(SpecError, match=r"model\.safetensors cannot be read as safetensors"):
        fingerprint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpecError, match="cannot be read"):
        fingerprint(folder)


def test_an_index_that_maps_nothing_is_refused(tmp_path):
    folder = model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(SpecError, match="weight_map"):
        fingerprint(folder)
