"""Weights read from a Hugging Face folder into an engine's own tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_rl.reshard.layout import Key, ModelShape
from megatron_rl.spec.schema import SpecError


@torch.no_grad()
def read_weights(folder: Path, shape: ModelShape, parameters: Mapping[Key, Tensor]) -> None:
    """Fills every tensor; SpecError where the folder lacks one or has it in another shape."""
    files = _files(folder)
    for key, target in parameters.items():
        if key.name not in files:
            raise SpecError(f"{folder} has no tensor '{key.name}', which a {shape.family} model needs.")
        with safe_open(files[key.name], framework="pt") as opened:
            found = opened.get_tensor(key.name)
        if found.shape != target.shape:
            raise SpecError(f"{folder}: '{key.name}' is {tuple(found.shape)}, expected {tuple(target.shape)}.")
        target.copy_(found)


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in names.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise SpecError(f"{folder} holds neither model.safetensors nor its index; it should be a Hugging Face folder.")
    with safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), single)
