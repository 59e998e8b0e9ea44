"""What a Megatron checkpoint's table of contents says: where its tensors and its objects lie, in types of our own.

The table is a pickle of torch's types. It is looked through before it is loaded and told anew after, so that a byte
that was damaged is a sentence here, and never an attribute that is missing later.
"""

from __future__ import annotations

import copyreg
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_rl.actor.pickled import TENSORS, look_through
from megatron_rl.reshard.layout import Box
from megatron_rl.spec.schema import SpecError

NAME = ".metadata"
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
"""All that such a table may name."""


def _by_value(member: Enum) -> tuple[type[Enum], tuple[object]]:
    return type(member), (member.value,)


# Python 3.11.2 pickles a member as a call of getattr, which could fetch anything; ours are written by value.
for _kind in (_MEM_FORMAT_ENCODING, WriteItemType):
    copyreg.pickle(_kind, _by_value)  # type: ignore[arg-type]  # a constructor of their own kind


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes of a file."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor, cut into boxes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: dict[Box, Piece]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that a checkpoint holds beside its common part."""

    tensors: dict[str, Stored]
    objects: list[Piece]


def read(folder: Path) -> Table:
    """The table, once nothing but what is known is called to load it; SpecError, naming the file, otherwise."""
    path = folder / NAME
    if path.exists() and not path.is_file():
        raise SpecError(f"{path} is a pipe or a device, so this is no Megatron distributed checkpoint.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error}), so this is no Megatron distributed checkpoint.") from None
    look_through(content, CONTENTS, str(path))
    try:
        return _told(folder, FileSystemReader(folder).read_metadata())
    except SpecError:
        raise
    except Exception as error:  # noqa: BLE001  # a damaged table builds whatever its bytes happen to say
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise SpecError(f"{path} is damaged ({reason}); nothing was loaded: save or convert it again.") from None


def _told(folder: Path, metadata: Metadata) -> Table:
    left = {_key(index): _piece(folder, index, info) for index, info in metadata.storage_data.items()}
    tensors = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            boxes = [_box(chunk.offsets, chunk.sizes) for chunk in entry.chunks]
            pieces = {box: left.pop((name, tuple(start for start, _ in box))) for box in boxes}
            tensors[str(name)] = Stored(shape=tuple(entry.size), dtype=_dtype(entry.properties.dtype), pieces=pieces)
    return Table(tensors=tensors, objects=list(left.values()))


def _key(index: MetadataIndex) -> tuple[str, tuple[int, ...] | None]:
    if not isinstance(index.fqn, str):
        raise TypeError("a name is no text")
    return index.fqn, None if index.offset is None else tuple(index.offset)


def _box(offsets: torch.Size, sizes: torch.Size) -> Box:
    return tuple((start, start + length) for start, length in zip(offsets, sizes, strict=True))


def _dtype(value: object) -> torch.dtype:
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{value!r} is no type of numbers")
    return value


def _piece(folder: Path, index: MetadataIndex, info: Any) -> Piece:  # noqa: ANN401  # torch keeps whatever a writer said
    file = folder / info.relative_path
    if file.parent != folder or info.transform_descriptors:
        raise SpecError(
            f"{folder / NAME} sends the reader of {index.fqn!r} to '{info.relative_path}', which is no "
            "plain file of this folder; nothing was loaded: use a checkpoint you trust."
        )
    if info.offset < 0 or info.length < 0:
        raise SpecError(f"{folder / NAME} puts {index.fqn!r} at {info.offset}, {info.length} bytes long.")
    if not file.is_file():
        raise SpecError(f"{folder} lacks {file.name}, where its table of contents puts {index.fqn!r}; copy it again.")
    if info.offset + info.length > (size := file.stat().st_size):
        raise SpecError(
            f"{folder / NAME} puts {index.fqn!r} at {info.offset} of {file.name}, {info.length} bytes long, but that "
            f"has {size} bytes; nothing was loaded: copy it again."
        )
    return Piece(file=file, offset=info.offset, length=info.length)
