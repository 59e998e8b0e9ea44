"""A Megatron distributed checkpoint of weights: written chunk by chunk, read box by box, never whole in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.serialization import get_crc32_options, set_crc32_options

from megatron_rl.actor import trust
from megatron_rl.actor.side_by_side import side_by_side
from megatron_rl.reshard.layout import Box, volume
from megatron_rl.reshard.stored import Chunk
from megatron_rl.spec.schema import SpecError


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


class Reader:
    """The tensors of a checkpoint by name, assembled of whatever chunks it has."""

    def __init__(self, folder: Path) -> None:
        if not dist_checkpointing.check_is_distributed_checkpoint(str(folder)):
            raise SpecError(f"{folder} is no Megatron distributed checkpoint: it lacks a readable metadata.json.")
        trust.check(folder)
        self.folder = folder
        self._storage = FileSystemReader(folder)
        self._metadata: Metadata = self._storage.read_metadata()
        self._storage.set_up_storage_reader(self._metadata, is_coordinator=True)

    @cached_property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Shape, type and chunks of every tensor."""
        known = self._metadata.state_dict_metadata.items()
        return {name: entry for name, entry in known if isinstance(entry, TensorStorageMetadata)}

    def read(self, name: str, box: Box) -> Tensor:
        """This box, without its first axis where that is one layer of a stack."""
        stored = self.tensors[name]
        target = torch.empty([stop - start for start, stop in box], dtype=stored.properties.dtype)
        items = [
            item
            for number, chunk in enumerate(stored.chunks)
            if (item := _overlap(name, number, chunk, box)) is not None
        ]
        if sum(item.lengths.numel() for item in items) != target.numel():
            raise SpecError(f"{self.folder} does not hold all of {name!r}; its chunks leave a part of {box} out.")
        try:
            self._storage.read_data(LoadPlan(items), _Into(target))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SpecError(f"{self.folder} holds {name!r} damaged ({reason}); save or convert it again.") from None
        return target


class _Into(LoadPlanner):
    """Directs every read into one tensor."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        at = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self.target[tuple(slice(start, start + length) for start, length in at)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing is left to do."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        raise AssertionError(f"only tensors are asked for, not {read_item.storage_index.fqn!r}")

    def set_up_planner(self, *_: object, **__: object) -> None:
        """The reads are given."""

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the reads are given")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan


class _Streamed(SaveShardedStrategy):
    """Megatron's format by torch's own writer, which is every rank's and gets each tensor when it needs it."""

    def __init__(self, contents: Contents, produce: Callable[[int, Chunk], Tensor]) -> None:
        super().__init__(backend="torch_dist", version=1)
        self.contents, self.produce = contents, produce

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        # A positive copy-ahead would let a machine with a GPU take tensors out of order.
        writer = FileSystemWriter(checkpoint_dir, per_thread_copy_ahead=0, sync_files=False)
        plans = [SavePlan([_tensor_item(chunk, self.contents.dtype) for chunk in file]) for file in self.contents.files]
        plans[0].items.extend(
            WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO) for name in self.contents.objects
        )
        # torch checks here that chunks do not overlap; `write` has counted their elements.
        plans, metadata = DefaultSavePlanner(flatten_state_dict=False).create_global_plan(plans)
        plans = writer.prepare_global_plan(plans)
        writer.set_up_storage_writer(is_coordinator=True)

        def written(number: int) -> list[WriteResult]:
            planner = _InTurn(number, self.contents.files[number], self.produce)
            return writer.write_data(plans[number], planner).wait()

        with _unsummed():
            results = side_by_side(written, range(len(plans)))
        writer.finish(metadata, results)


@contextmanager
def _unsummed() -> Iterator[None]:
    """Within, torch's archives get no checksums: nobody reads them, and what matters here has a digest."""
    summed = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(summed)


class _InTurn(DefaultSavePlanner):
    """Gives the writer of a file what it asks for."""

    def __init__(self, number: int, file: Sequence[Chunk], produce: Callable[[int, Chunk], Tensor]) -> None:
        super().__init__(flatten_state_dict=False)
        self.number, self.produce = number, produce
        self.chunks = {(chunk.name, tuple(start for start, _ in chunk.at)): chunk for chunk in file}

    def lookup_object(self, index: MetadataIndex) -> object:
        if index.offset is None:
            return [None]  # as Megatron stores the state of one layer that has none
        chunk = self.chunks[index.fqn, tuple(index.offset)]
        return self.produce(self.number, chunk).reshape([stop - start for start, stop in chunk.at])


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


def _overlap(name: str, number: int, chunk: ChunkStorageMetadata, box: Box) -> ReadItem | None:
    """The part of a chunk that lies in the box."""
    first = [max(start, offset) for (start, _), offset in zip(box, chunk.offsets, strict=True)]
    last = [min(stop, offset + size) for (_, stop), offset, size in zip(box, chunk.offsets, chunk.sizes, strict=True)]
    lengths = torch.Size([max(0, stop - start) for start, stop in zip(first, last, strict=True)])
    if not lengths.numel():
        return None
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=MetadataIndex(name),
        dest_offsets=torch.Size([start - begin for start, (begin, _) in zip(first, box, strict=True)]),
        storage_index=MetadataIndex(name, chunk.offsets, number),
        storage_offsets=torch.Size([start - offset for start, offset in zip(first, chunk.offsets, strict=True)]),
        lengths=lengths,
    )
