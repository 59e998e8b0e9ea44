"""Chunks of a Megatron checkpoint made of Hugging Face tensors, and Hugging Face tensors made of such chunks.

Both are plans carried out for one tensor at a time, so memory holds what one fused weight is made of and no more.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from threading import Lock, local

import torch
from torch import Tensor

from megatron_rl.actor.distributed_folder import Reader, within
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.room import Room
from megatron_rl.actor.safetensors_folder import DTYPES
from megatron_rl.actor.safetensors_folder import Reader as HfReader
from megatron_rl.actor.side_by_side import shares
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import Box, Key, Layout, ModelShape, volume
from megatron_rl.reshard.local import Filled, by_target, slices
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.names import EMBEDDING
from megatron_rl.reshard.plan import plan_rank
from megatron_rl.reshard.stored import Chunk, chunks
from megatron_rl.spec.schema import SpecError

OPTIMIZER = "optimizer."
"""What the names of an actor's other tensors begin with."""


class Fusion:
    """The chunks that every rank of a cut writes, and what each holds; counts its moves.

    A rank's chunks are shared out over files, and each file is asked for by one thread, chunk after chunk.
    """

    def __init__(self, source: HfReader, shape: ModelShape, parallel: Parallel, dtype: torch.dtype) -> None:
        self.source, self.shape, self.dtype = source, shape, dtype
        self.layout = megatron_layout(shape, parallel, modules="transformer_engine")
        of_ranks = [
            (rank, tuple(file))
            for rank in range(parallel.world)
            for file in shares(list(chunks(self.layout, rank, parallel.tp)), lambda chunk: volume(chunk.box))
        ]
        self._ranks = tuple(rank for rank, _ in of_ranks)
        self.files = tuple(file for _, file in of_ranks)
        self.written = self.padding = 0
        self._counting = Lock()
        self._benches = local()

    def __call__(self, file: int, chunk: Chunk) -> Tensor:
        """What the chunk holds, until the same thread asks for the next: new memory costs as much as a copy does."""
        bench = self._bench(file)
        # What was mapped for the chunk before is let go, or memory would grow to the size of the model.
        bench.source.release()
        tensor, every = bench.filled[chunk.tensor]
        copies = [copy for copy in every if _inside(copy.target.box, chunk.box)]
        with self._counting:
            self.written += sum(copy.elements for copy in copies)
            self.padding += sum(map(volume, tensor.zeros))
        if len(copies) == 1 and copies[0].target.box == chunk.box:
            part = bench.source.whole(copies[0].source.key.name)[slices(copies[0].source.box)]
            if part.is_contiguous():
                return part
        target = bench.room(extent(chunk.box), self.dtype)
        for copy in copies:
            whole = bench.source.whole(copy.source.key.name)
            target[slices(within(copy.target.box, chunk.box))] = whole[slices(copy.source.box)]
        for box in tensor.zeros:
            target[slices(within(box, chunk.box))] = 0
        return target

    def _bench(self, file: int) -> "_Bench":
        """This thread's, laid out for the file's rank."""
        rank = self._ranks[file]
        bench: _Bench | None = getattr(self._benches, "bench", None)
        if bench is None or bench.rank != rank:
            made = plan_rank(huggingface_layout(self.shape), self.layout, rank)
            filled = {one.tensor.key: one for one in by_target(made, rank)}
            source, room = (bench.source, bench.room) if bench else (HfReader(self.source.folder), Room())
            bench = self._benches.bench = _Bench(rank, source, room, filled)
        return bench


class _Bench:
    """Where a thread makes the chunks of one rank."""

    def __init__(self, rank: int, source: HfReader, room: Room, filled: Mapping[Key, Filled]) -> None:
        self.rank, self.source, self.room, self.filled = rank, source, room, filled


def unfused(source: Reader, shape: ModelShape) -> tuple[Iterator[tuple[str, Tensor]], ...]:
    """Every Hugging Face tensor of a checkpoint, whatever cut wrote it, in streams that threads can read at once."""
    stored, target = _stored_layout(source, shape), huggingface_layout(shape)
    places: dict[Key, list[Chunk]] = defaultdict(list)
    for chunk in chunks(stored, 0, 1):
        places[chunk.tensor].append(chunk)
    filled = list(by_target(plan_rank(stored, target, 0), 0))
    return tuple(_unfused(source, places, share) for share in shares(filled, lambda one: prod(one.tensor.shape)))


def _unfused(
    source: Reader, places: Mapping[Key, Sequence[Chunk]], filled: Sequence[Filled]
) -> Iterator[tuple[str, Tensor]]:
    """Each until the next one is asked for."""
    held, box, of_chunk, of_tensor = None, torch.empty(0), Room(), Room()
    for tensor, copies in filled:
        whole: Tensor | None = None
        for copy in copies:
            chunk = next(one for one in places[copy.source.key] if _inside(copy.source.box, one.box))
            if held != chunk:  # query, key and value are of one chunk
                held, box = chunk, source.read(chunk.name, chunk.at, of_chunk).reshape(extent(chunk.box))
            part = box[slices(within(copy.source.box, chunk.box))]
            if len(copies) == 1:
                whole = part
            else:
                whole = of_tensor(tensor.shape, box.dtype) if whole is None else whole
                whole[slices(copy.target.box)] = part
        if whole is None:
            raise AssertionError(f"the plan fills no element of {tensor.name!r}")
        yield tensor.name, whole


def check_source(source: HfReader, shape: ModelShape) -> torch.dtype:
    """The one type of a folder's tensors; SpecError unless they are those of the shape, no more and no less."""
    found = source.inventory()
    wanted = {tensor.name: tensor.shape for tensor in huggingface_layout(shape).tensors(0)}
    _compare(str(source.folder), {name: entry.shape for name, entry in found.items()}, wanted)
    kinds = sorted({entry.dtype for entry in found.values()})
    if len(kinds) > 1 or kinds[0] not in DTYPES:
        raise SpecError(f"{source.folder} holds {', '.join(kinds)}, but needs one type for all of {', '.join(DTYPES)}.")
    return DTYPES[kinds[0]]


def check_stored(source: Reader, shape: ModelShape) -> torch.dtype:
    """The one type of a checkpoint's weights; SpecError unless they are those of the shape, no more and no less."""
    found = {name: entry for name, entry in source.tensors.items() if not name.startswith(OPTIMIZER)}
    if any("_adapter." in name for name in found):
        raise SpecError(
            f"{source.folder} was learnt with LoRA, so its weights are those of before; merge what was learnt into the "
            f"folder that it began with: python tools/merge_lora.py BASE {source.folder / 'adapter'} TARGET"
        )
    wanted = {chunk.name: chunk.shape for chunk in chunks(_stored_layout(source, shape), 0, 1)}
    _compare(str(source.folder), {name: entry.shape for name, entry in found.items()}, wanted)
    kinds = {entry.dtype for entry in found.values()}
    if len(kinds) > 1:
        raise SpecError(f"{source.folder} holds {sorted(map(str, kinds))}, but needs one type for all tensors.")
    return kinds.pop()


def extent(box: Box) -> list[int]:
    """The shape of a box."""
    return [stop - start for start, stop in box]


def _stored_layout(source: Reader, shape: ModelShape) -> Layout:
    """One rank that holds all, with the padding that the checkpoint has."""
    embedding = source.tensors.get(EMBEDDING.transformer_engine)
    if embedding is None:
        raise SpecError(f"{source.folder} lacks {EMBEDDING.transformer_engine!r}, so it is no checkpoint of a model.")
    rows = max(embedding.shape[0], shape.vocabulary)
    return megatron_layout(shape, Parallel(), modules="transformer_engine", vocabulary=rows)


def _compare(where: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise SpecError(f"{where} has no tensor {missing[0]!r}, which its config.json asks for.")
    if extra := sorted(found.keys() - wanted.keys()):
        raise SpecError(f"{where} has a tensor {extra[0]!r}, for which its config.json has no place; remove it.")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise SpecError(f"{where} has {name!r} as {found[name]}, but its config.json asks for {shape}.")


def _inside(inner: Box, outer: Box) -> bool:
    return all(start >= first and stop <= last for (start, stop), (first, last) in zip(inner, outer, strict=True))
