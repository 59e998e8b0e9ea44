"""A folder as PEFT writes a LoRA adapter: read, written, and merged into the Hugging Face folder it belongs to.

R rank of a change, I inputs and O outputs of the matrix that it changes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_rl.actor import safetensors_folder as hf
from megatron_rl.actor.durable import replacing
from megatron_rl.spec.schema import SpecError

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
WEIGHT = ".weight"
UNKNOWN = (
    *("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "use_qalora"),
    *("trainable_token_indices", "target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config"),
)
"""Switches of PEFT that change what an adapter means, and are read as off only."""
BESIDE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin (`init_lora_weights`) that leave the matrices as they were; PiSSA, OLoRA and others do not."""


class Change(NamedTuple):
    """What one matrix is changed by: scale * B A."""

    A: Tensor
    """(R, I)"""
    B: Tensor
    """(O, R)"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What adapter_config.json says: About(rank=16, alpha=32.0)."""

    rank: int
    alpha: float
    is_rank_stabilised: bool = False
    """Whether alpha is divided by the root of the rank (PEFT's `use_rslora`)."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilised else self.rank)


def about(folder: Path) -> About:
    """SpecError where the folder holds no LoRA adapter, or one with more to it than two factors a matrix."""
    path = folder / CONFIG
    if not path.is_file():
        raise SpecError(f"{path} does not exist; point at a folder that PEFT saved.")
    said = hf.read_json(path)
    if said.get("peft_type") != "LORA":
        raise SpecError(f"{path} has peft_type {said.get('peft_type')!r}, but only 'LORA' can be read.")
    for name in UNKNOWN:
        if said.get(name):
            raise SpecError(f"{path} sets {name!r} to {said[name]!r}, which cannot be read; merge it with PEFT itself.")
    if said.get("bias", "none") != "none":
        raise SpecError(f"{path} has bias {said['bias']!r}, but only adapters with bias 'none' can be read.")
    began = said.get("init_lora_weights", True)
    if began not in BESIDE:
        raise SpecError(
            f"{path} has init_lora_weights {began!r}, which changes the matrices themselves; merge it with PEFT, or "
            "save it with path_initial_model_for_weight_conversion."
        )
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise SpecError(f"{path} needs r as a whole number above 0, but has {rank!r}.")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise SpecError(f"{path} needs lora_alpha as a number, but has {alpha!r}.")
    return About(rank=rank, alpha=float(alpha), is_rank_stabilised=bool(said.get("use_rslora")))


def read(folder: Path, wanted: About | None = None) -> dict[str, Change]:
    """The changes by the names of their matrices, such as 'model.layers.0.self_attn.q_proj'."""
    found = about(folder)
    if wanted is not None and (found.rank, found.scale) != (wanted.rank, wanted.scale):
        raise SpecError(
            f"{folder} has rank {found.rank} and scale {found.scale:g}, but actor.lora asks for rank {wanted.rank} "
            f"and scale alpha / rank = {wanted.scale:g}; set rank and alpha to the adapter's."
        )
    reader = hf.Reader(folder)
    factors: dict[str, dict[str, Tensor]] = {}
    for name in reader.inventory():
        matrix, _, letter = name.removeprefix(PREFIX).removesuffix(WEIGHT).rpartition(".lora_")
        if not name.startswith(PREFIX) or letter not in ("A", "B") or not matrix:
            raise SpecError(f"{folder} holds {name!r}, which is no factor of a linear layer's change.")
        factors.setdefault(matrix, {})[letter] = reader.whole(name)
    if not factors:
        raise SpecError(f"{folder} changes no matrix; was it saved on all ranks?")
    changes = {}
    for matrix, pair in factors.items():
        sizes = {letter: tuple(factor.shape) for letter, factor in pair.items()}
        match sizes:
            case {"A": (rank, _), "B": (_, columns)} if rank == columns == found.rank:
                changes[matrix] = Change(**pair)
            case _:
                raise SpecError(f"{folder} has {sizes} for {matrix!r}, but needs A and B of rank {found.rank}.")
    return changes


def check(folder: Path, changes: Mapping[str, Change], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """SpecError unless the changes are those of matrices of these names and shapes, no more and no less."""
    for name in sorted(changes.keys() ^ wanted.keys()):
        what = "changes" if name in changes else "lacks a change of"
        raise SpecError(f"{folder} {what} {name!r}, unlike actor.lora.targets; set targets to the adapter's.")
    for name, shape in wanted.items():
        _check_shape(folder, name, changes[name], shape)


def write(folder: Path, said: About, changes: Mapping[str, Change], base: Path) -> None:
    """The folder that PEFT's `PeftModel.from_pretrained` opens on the model of `base`."""
    first = next(iter(changes.values()))
    tensors = {
        f"{PREFIX}{name}.lora_{letter}{WEIGHT}": factor
        for name, change in changes.items()
        for letter, factor in change._asdict().items()
    }
    contents = hf.Contents(shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype=first.A.dtype)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": said.rank,
        "lora_alpha": said.alpha,
        "use_rslora": said.is_rank_stabilised,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in changes}),
        "inference_mode": True,
    }
    with replacing(folder) as aside:
        hf.write_shard(aside, hf.Shard(TENSORS, tuple(tensors)), contents, iter(tensors.values()))
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def merge(base: Path, adapter: Path, target: Path, shard_bytes: int) -> int:
    """Writes `base` with each changed matrix W as W + scale * B A; returns how many those were.

    Sums are taken in float32 and stored in the type of the base. One matrix is held at a time.
    """
    if target.exists():
        raise SpecError(f"{target} exists; name a folder that does not, or remove it.")
    changes, scale, reader = read(adapter), about(adapter).scale, hf.Reader(base)
    found = reader.inventory()
    kinds = sorted({entry.dtype for entry in found.values()})
    if len(kinds) > 1 or kinds[0] not in hf.DTYPES:
        raise SpecError(f"{base} holds {', '.join(kinds)}, but needs one type for all of {', '.join(hf.DTYPES)}.")
    for name, change in changes.items():
        if f"{name}{WEIGHT}" not in found:
            raise SpecError(f"{adapter} changes {name!r}, which {base} does not have; is it another model's adapter?")
        _check_shape(adapter, name, change, found[f"{name}{WEIGHT}"].shape)
    contents = hf.Contents(shapes={name: entry.shape for name, entry in found.items()}, dtype=hf.DTYPES[kinds[0]])
    shards = contents.shards(shard_bytes)
    with replacing(target) as aside:
        hf.copy_companions(base, aside)
        merged = _merged(reader, contents, changes, scale)
        for shard in shards:
            hf.write_shard(aside, shard, contents, merged)
        hf.write_index(aside, contents, shards)
    return len(changes)


@torch.no_grad()
def _merged(reader: hf.Reader, contents: hf.Contents, changes: Mapping[str, Change], scale: float) -> Iterator[Tensor]:
    for name in contents.shapes:
        weight, change = reader.whole(name), changes.get(name.removesuffix(WEIGHT))
        if change is not None:
            weight = (weight.float() + scale * (change.B.float() @ change.A.float())).to(contents.dtype)
        yield weight
        reader.release()


def _check_shape(folder: Path, name: str, change: Change, shape: tuple[int, ...]) -> None:
    found = (change.B.shape[0], change.A.shape[1])
    if found != tuple(shape):
        raise SpecError(f"{folder} changes {name!r} as {found}, but the matrix is {tuple(shape)}.")
