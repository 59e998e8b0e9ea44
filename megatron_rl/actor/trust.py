"""What a Megatron checkpoint may make a process call before any of it is loaded: only what builds tensors and plans.

Megatron pickles its table of contents, its objects and its common part, and loads them by calling what they name. A
manifest finds damage and no forger, so the names are looked at first.
"""

from __future__ import annotations

import copyreg
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_rl.actor.pickled import LOADS_BYTES, TENSORS, look_through, look_through_archive
from megatron_rl.spec.schema import SpecError

_CHECKPOINT = "torch.distributed.checkpoint"
CONTENTS = TENSORS | {
    *(f"{_CHECKPOINT}.metadata {name}" for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata")),
    *(f"{_CHECKPOINT}.metadata {name}" for name in ("MetadataIndex", "StorageMeta", "TensorProperties")),
    *(f"{_CHECKPOINT}.metadata {name}" for name in ("TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *(f"{_CHECKPOINT}.planner {name}" for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData")),
    *(f"{_CHECKPOINT}.planner {name}" for name in ("WriteItem", "WriteItemType")),
    f"{_CHECKPOINT}.filesystem _StorageInfo",
    "torch.serialization _get_layout",
    "pathlib PosixPath",
}
"""What the table of contents names."""

_RECIPES = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")
SCALES = TENSORS | {
    *(f"transformer_engine.common.recipe {name}" for name in (*_RECIPES, "Format", "_FormatHelper")),
    *(f"transformer_engine.common.recipe {name}" for name in ("MMParams", "QParams")),
    LOADS_BYTES,
}
"""What the state of Transformer Engine's FP8 recipes names."""


def _by_value(member: Enum) -> tuple[type[Enum], tuple[object]]:
    return type(member), (member.value,)


# Python 3.11.2 pickles a member as a call of getattr, which could fetch anything; ours are written by value.
for _kind in (_MEM_FORMAT_ENCODING, WriteItemType):
    copyreg.pickle(_kind, _by_value)  # type: ignore[arg-type]  # a constructor of their own kind

_BACKENDS = {"sharded_backend": "torch_dist", "common_backend": "torch"}


def check(folder: Path) -> None:
    """Returns if loading calls only what is known; SpecError, naming the file and what it would call, otherwise."""
    _check_backends(folder / "metadata.json")
    look_through(_bytes_of(folder / ".metadata"), CONTENTS, str(folder / ".metadata"))
    look_through_archive(_bytes_of(folder / "common.pt"), TENSORS, str(folder / "common.pt"))
    harmless: set[bytes] = set()  # layers that have no state all say so in the same bytes
    for file, offset, length in _objects(folder, FileSystemReader(folder).read_metadata()):
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(length)
        if content not in harmless:
            look_through_archive(content, TENSORS, f"{file}, {length} bytes from {offset}")
            harmless.add(content)


def check_states(state: Mapping[str, object], where: str) -> None:
    """The same for the states of modules, which Transformer Engine keeps as tensors of pickled bytes."""
    for name, value in state.items():
        if not name.endswith("_extra_state") or value is None:
            continue
        if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8:
            raise SpecError(f"{where}: '{name}' should be a tensor of bytes or nothing, got {type(value).__name__}.")
        if value.numel():
            look_through(value.detach().cpu().numpy().tobytes(), SCALES, f"{where}: '{name}'")


def _check_backends(path: Path) -> None:
    """Only the formats that are looked through here."""
    try:
        said = json.loads(path.read_text())
        found = {name: said[name] for name in _BACKENDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} does not say which format this checkpoint has ({error!r}).") from None
    if found != _BACKENDS:
        raise SpecError(f"{path} says {found}, but only {_BACKENDS} can be loaded; convert the checkpoint first.")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error}), so this is no Megatron distributed checkpoint.") from None


def _objects(folder: Path, metadata: Metadata) -> Iterator[tuple[Path, int, int]]:
    """File, offset and length of everything that is not a tensor; tensors are loaded by weights alone."""
    for index, info in (metadata.storage_data or {}).items():
        file = folder / info.relative_path
        if file.parent != folder or info.transform_descriptors:
            raise SpecError(
                f"{folder / '.metadata'} sends the reader of {index.fqn!r} to '{info.relative_path}', which is no "
                "plain file of this folder; nothing was loaded: use a checkpoint you trust."
            )
        if not isinstance(metadata.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            if info.offset < 0 or info.length < 0:
                raise SpecError(
                    f"{folder / '.metadata'} puts {index.fqn!r} at {info.offset}, {info.length} bytes long."
                )
            yield file, info.offset, info.length
