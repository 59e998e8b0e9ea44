"""A Megatron distributed checkpoint of weights: written chunk by chunk, read box by box, never whole in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedWriter
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view
from torch.serialization import get_crc32_options, set_crc32_options

from megatron_rl.actor import trust
from megatron_rl.actor.archived import lying
from megatron_rl.actor.durable import InPieces
from megatron_rl.actor.room import alone
from megatron_rl.actor.side_by_side import side_by_side
from megatron_rl.reshard.layout import Box, volume
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.stored import Chunk
from megatron_rl.spec.schema import SpecError

ALIGNMENT = 64
"""Of what torch saves in an archive of its own."""


class Contents(NamedTuple):
    """What to write: the chunks of each file in order, the names of empty objects, and the type of every tensor."""

    files: Sequence[Sequence[Chunk]]
    objects: Sequence[str]
    dtype: torch.dtype


def write(
    folder: Path, contents: Contents, produce: Callable[[int, Chunk], Tensor], metadata: Mapping[str, object]
) -> None:
    """Writes the folder, and leaves syncing it to the caller; `produce(file, chunk)` is asked for each in its turn.

    Two files are written at a time, so two threads ask.
    ValueError unless the chunks fill every tensor once.
    """
    left: dict[str, int] = {}
    for chunk in (chunk for file in contents.files for chunk in file):
        left[chunk.name] = left.get(chunk.name, prod(chunk.shape)) - volume(chunk.at)
    for name, elements in left.items():
        if elements > 0:
            raise ValueError(f"the chunks of {name!r} leave {elements} of its elements out; give them all.")
    try:
        dist_checkpointing.save({}, str(folder), _Streamed(contents, produce), content_metadata=dict(metadata))
    except RuntimeError as error:
        # torch's archive, closed over a disk that is full, complains of its own state and hides the disk's answer.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        if "iostream error" in str(error):
            raise OSError(f"{folder} could not be written; make room on its disk.") from None
        raise


def _new(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(torch.Size(size), dtype=dtype)


def _is_checkpoint(folder: Path) -> bool:
    try:
        return dist_checkpointing.check_is_distributed_checkpoint(str(folder))
    except (TypeError, ValueError, RecursionError):  # a metadata.json with other names, or that is no JSON
        return False


class Reader:
    """The tensors of a checkpoint by name, assembled of whatever chunks it has."""

    def __init__(self, folder: Path) -> None:
        if not _is_checkpoint(folder):
            raise SpecError(f"{folder} is no Megatron distributed checkpoint: it lacks a readable metadata.json.")
        self.folder = folder
        self.tensors = trust.check(folder).tensors

    def read(self, name: str, box: Box, room: Callable[[Sequence[int], torch.dtype], Tensor] = _new) -> Tensor:
        """This box, without its first axis where that is one layer of a stack.

        It lies in the mapped file where one chunk holds it all, and is put together in `room` otherwise.
        """
        parts = [(place, common) for place in self.tensors[name].pieces if (common := _overlap(place, box)) is not None]
        if sum(volume(common) for _, common in parts) != volume(box):
            raise SpecError(f"{self.folder} does not hold all of {name!r}; its chunks leave a part of {box} out.")
        if len(parts) == 1:
            place, _ = parts[0]
            return self._chunk(name, place)[slices(within(box, place))]
        target = room([stop - start for start, stop in box], self.tensors[name].dtype)
        for place, common in parts:
            target[slices(within(common, box))] = self._chunk(name, place)[slices(within(common, place))]
        return target

    def _chunk(self, name: str, place: Box) -> Tensor:
        """A chunk as it lies in its file, which is mapped for as long as the tensor is held."""
        piece = self.tensors[name].pieces[place]
        shape = tuple(stop - start for start, stop in place)
        try:
            with piece.file.open("rb") as stream:
                view = cast(IO[bytes], _create_file_view(stream, piece.offset, piece.length))
                archive: Any = torch._C.PyTorchFileReader(view)  # its stub lacks what is asked of it
                told, size = lying(archive.get_record("data.pkl"), shape), archive.get_record_size("data/0")
                held = np.memmap(stream, np.uint8, "c", piece.offset + archive.get_record_offset("data/0"), (size,))
            kept = torch.from_numpy(held)
            if kept.data_ptr() % told.dtype.itemsize:
                kept = kept.clone()
            return kept.view(told.dtype).as_strided(shape, told.strides, told.start)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SpecError(f"{self.folder} holds {name!r} damaged ({reason}); save or convert it again.") from None


class _Streamed(SaveShardedStrategy):
    """Megatron's format by torch's own writer, which is every rank's and gets each tensor when it needs it."""

    def __init__(self, contents: Contents, produce: Callable[[int, Chunk], Tensor]) -> None:
        super().__init__(backend="torch_dist", version=1)
        self.contents, self.produce = contents, produce
        self._chunks = {
            (chunk.name, tuple(start for start, _ in chunk.at)): chunk for file in contents.files for chunk in file
        }

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        writer = FileSystemWriter(checkpoint_dir, sync_files=False)
        plans = [SavePlan([_tensor_item(chunk, self.contents.dtype) for chunk in file]) for file in self.contents.files]
        plans[0].items.extend(
            WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO) for name in self.contents.objects
        )
        # torch checks here that chunks do not overlap; `write` has counted their elements.
        plans, metadata = DefaultSavePlanner(flatten_state_dict=False).create_global_plan(plans)
        plans = writer.prepare_global_plan(plans)
        writer.set_up_storage_writer(is_coordinator=True)

        def written(number: int) -> list[WriteResult]:
            path = Path(checkpoint_dir, f"{plans[number].storage_data.prefix}0{DEFAULT_SUFFIX}")
            with BufferedWriter(InPieces(path, "w")) as stream, _unsummed():
                return [_put(stream, item, self._content(number, item)) for item in plans[number].items]

        writer.finish(metadata, side_by_side(written, range(len(plans))))

    def _content(self, number: int, item: WriteItem) -> object:
        if item.tensor_data is None:
            return [None]  # as Megatron stores the state of one layer that has none
        offsets = tuple(item.tensor_data.chunk.offsets)
        chunk = self._chunks[item.index.fqn, offsets]
        return alone(self.produce(number, chunk)).view(item.tensor_data.chunk.sizes)


def _put(stream: "BufferedWriter[InPieces]", item: WriteItem, content: object) -> WriteResult:
    """Appends what torch's own writer would, where a mapped file has it in line."""
    at = -(-stream.tell() // ALIGNMENT) * ALIGNMENT
    stream.seek(at)
    torch.save(content, stream)
    length = stream.tell() - at
    return WriteResult(item.index, length, _StorageInfo(Path(stream.name).name, at, length))


@contextmanager
def _unsummed() -> Iterator[None]:
    """Within, this thread's archives get no checksums: nobody reads them, and what matters here has a digest."""
    summed = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(summed)


def _tensor_item(chunk: Chunk, dtype: torch.dtype) -> WriteItem:
    offsets = torch.Size([start for start, _ in chunk.at])
    return WriteItem(
        index=MetadataIndex(chunk.name, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size([stop - start for start, stop in chunk.at])),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size(chunk.shape),
        ),
    )


def within(inner: Box, outer: Box) -> Box:
    """The inner box as it lies in the outer one."""
    return tuple((start - first, stop - first) for (start, stop), (first, _) in zip(inner, outer, strict=True))


def _overlap(one: Box, other: Box) -> Box | None:
    """What lies in both, where anything does."""
    if any(start >= last or first >= stop for (start, stop), (first, last) in zip(one, other, strict=True)):
        return None
    return tuple((max(start, first), min(stop, last)) for (start, stop), (first, last) in zip(one, other, strict=True))
