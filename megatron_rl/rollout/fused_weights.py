"""Weights under their Hugging Face names, fused in memory where the decoder multiplies once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import Key, ModelShape

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""By the last parts of their names, in a dense layer's `mlp` as in each of its `mlp.experts`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedWeights:
    """`parameters` are writable views, one for each Hugging Face tensor; `storage` is what the decoder reads.

    storage["model.layers.0.mlp.gate_up_proj.weight"] is one matrix, whose upper half is the view
    parameters[Key(0, "model.layers.0.mlp.gate_proj.weight")].
    """

    parameters: Mapping[Key, Tensor]
    storage: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def empty(cls, shape: ModelShape, dtype: torch.dtype, device: torch.device) -> FusedWeights:
        """Room for every tensor of the model, filled with zeros until weights arrive."""
        sizes = {tensor.name: tensor.shape for tensor in huggingface_layout(shape).tensors(0)}
        parameters: dict[Key, Tensor] = {}
        storage: dict[str, Tensor] = {}
        for fused, names in _fused(sizes).items():
            rows = [sizes[name][0] for name in names]
            storage[fused] = torch.zeros((sum(rows), *sizes[names[0]][1:]), dtype=dtype, device=device)
            views = storage[fused].split(rows)
            parameters |= {Key(0, name): view for name, view in zip(names, views, strict=True)}
        return cls(parameters=parameters, storage=storage)


def _fused(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The tensors that share a storage, by its name; a tensor on its own is its own storage."""
    into = {part: fused for fused, parts in FUSED.items() for part in parts}
    storages: dict[str, list[str]] = {}
    for name in sizes:
        *room, part, kind = name.split(".")
        fused = into.get(part, part)
        storages[".".join([*room, fused, kind])] = [".".join([*room, each, kind]) for each in FUSED.get(fused, [part])]
    return storages
