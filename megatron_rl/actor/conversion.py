"""Hugging Face folders into Megatron checkpoints and back, in one process, without a model or an optimizer.

What was written is read back through the plan of the other way and compared with what was read, all before it gets
its name: a target that exists is whole and right.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from megatron_rl.actor import distributed_folder, fit, groups, saving
from megatron_rl.actor import safetensors_folder as hf
from megatron_rl.actor.architecture import Architecture, describe
from megatron_rl.actor.certificate import FILE, Certificate, Compared, Digest, compared, versions
from megatron_rl.actor.distributed_folder import Contents
from megatron_rl.actor.durable import replacing
from megatron_rl.actor.parallel import Parallel
from megatron_rl.actor.side_by_side import shares
from megatron_rl.actor.translation import Fusion, check_source, check_stored, unfused
from megatron_rl.actor.weights import SHARD_BYTES, named_dtype, read_config
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import LayoutError, ModelShape
from megatron_rl.reshard.stored import objects
from megatron_rl.spec.schema import SpecError

Tensors = Iterator[tuple[str, Tensor]]
COMPANIONS = "hugging_face"
"""Where a converted checkpoint keeps config.json and tokenizer, so that it can be exported by itself."""


def to_megatron(source: Path, target: Path, parallel: Parallel) -> Certificate:
    """Writes the weights of a Hugging Face folder as an actor of this cut saves them; any cut loads them."""
    _refuse_existing(target)
    architecture = _architecture(source, parallel)
    reader = hf.Reader(source)
    dtype = check_source(reader, architecture.shape)
    fusion = Fusion(reader, architecture.shape, parallel, dtype)
    contents = Contents(fusion.files, objects(architecture.shape), dtype)
    with replacing(target) as aside:
        with alone():
            distributed_folder.write(aside, contents, fusion, saving.WEIGHTS)
        saving.write_progress(aside, {})
        (aside / COMPANIONS).mkdir()
        hf.copy_companions(source, aside / COMPANIONS)
        stored = distributed_folder.Reader(aside)
        check_stored(stored, architecture.shape)
        tensors = _compared(aside, unfused(stored, architecture.shape), source)
        made = Certificate(
            source=huggingface_layout(architecture.shape).label,
            target=fusion.layout.label,
            elements=_elements(tensors),
            written=fusion.written,
            padding=fusion.padding,
            plan_bytes=fusion.written * dtype.itemsize,
            tensors=tensors,
            versions=versions(),
        )
        made.write(aside)
        _refuse_existing(target)
    return made


def to_huggingface(source: Path, target: Path, like: Path | None = None, shard_bytes: int = SHARD_BYTES) -> Certificate:
    """Writes a checkpoint's weights with the config and tokenizer of `like`, by default those it was converted with.

    With `like`, weights get the type that its config names, else they keep theirs. Optimizer state is left out.
    """
    _refuse_existing(target)
    origin = like or source / COMPANIONS
    if not origin.is_dir():
        raise SpecError(f"{source} keeps no config.json of its own; name the Hugging Face folder it began with (like).")
    shape = _architecture(origin).shape
    reader = distributed_folder.Reader(source)
    stored = check_stored(reader, shape)
    contents = hf.Contents(
        shapes={tensor.name: tensor.shape for tensor in huggingface_layout(shape).tensors(0)},
        dtype=named_dtype(like, stored) if like else stored,
    )
    with replacing(target) as aside:
        hf.copy_companions(origin, aside)
        tensors = _write(aside, contents, unfused(reader, shape), contents.shards(shard_bytes))
        _check_converted(source, reader, shape, tensors)
        written = _elements(tensors)
        made = Certificate(
            source=f"megatron checkpoint of {str(stored).removeprefix('torch.')}",
            target=huggingface_layout(shape).label,
            elements=sum(math.prod(size) for size in contents.shapes.values()),
            written=written,
            padding=0,
            plan_bytes=written * stored.itemsize,
            tensors=tensors,
            versions=versions(),
        )
        made.write(aside)
        _refuse_existing(target)
    return made


def _check_converted(
    source: Path, reader: distributed_folder.Reader, shape: ModelShape, tensors: Mapping[str, Digest]
) -> None:
    """ValueError where a checkpoint that was converted no longer holds what its certificate says."""
    if not (source / FILE).is_file():
        return
    certificate = Certificate.read(source)
    if {digest.dtype for digest in tensors.values()} == {digest.dtype for digest in certificate.tensors.values()}:
        certificate.compare(source, tensors)
    else:
        certificate.check(source, *unfused(reader, shape))


def _write(
    folder: Path, contents: hf.Contents, streams: Sequence[Tensors], shards: Sequence[hf.Shard]
) -> dict[str, Digest]:
    """Writes the shards and their index, and gives the digests of what they hold, which is what went into them."""

    def put(stream: Tensors) -> Compared:
        for name, tensor in stream:
            wanted = tensor.to(contents.dtype)
            yield name, file_of[name](name, wanted), wanted

    with ExitStack() as files:
        file_of = {
            name: file
            for shard in shards
            for file in (files.enter_context(hf.writing(folder, shard, contents)),)
            for name in shard.names
        }
        digests = compared(folder, [put(stream) for stream in streams])
    hf.write_index(folder, contents, shards)
    return _complete(folder, digests, folder)


def _compared(target: Path, streams: Sequence[Tensors], source: Path) -> dict[str, Digest]:
    """Digests of the streams; ValueError, naming the target, unless they are the tensors of the Hugging Face folder."""

    def beside(stream: Tensors) -> Compared:
        reader = hf.Reader(source)
        for name, tensor in stream:
            yield name, tensor, reader.whole(name)
            reader.release()

    return _complete(target, compared(target, [beside(stream) for stream in streams]), source)


def _complete(target: Path, digests: Mapping[str, Digest], folder: Path) -> dict[str, Digest]:
    """The digests in the order of a Hugging Face folder; ValueError, naming the target, where it has others."""
    found = hf.Reader(folder).inventory()
    shapes = {name: digest.shape for name, digest in digests.items()}
    if shapes != {name: entry.shape for name, entry in found.items()}:
        raise ValueError(f"{target} does not hold the tensors that were converted, as many and as large; try again.")
    return {name: digests[name] for name in found}


def verify(folder: Path) -> Certificate:
    """The certificate of a converted folder of either kind; ValueError unless the folder holds what it says."""
    certificate = Certificate.read(folder)
    if (folder / COMPANIONS).is_dir():
        shape = _architecture(folder / COMPANIONS).shape
        stored = distributed_folder.Reader(folder)
        check_stored(stored, shape)
        certificate.check(folder, *unfused(stored, shape))
    else:
        found = list(hf.Reader(folder).inventory().items())
        halves = shares(found, lambda one: math.prod(one[1].shape))
        certificate.check(folder, *(_tensors(folder, dict(half)) for half in halves))
    return certificate


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process is a rank, as Megatron's checkpoints ask; it stays what it was where it is one already."""
    if dist.is_initialized():
        if dist.get_world_size() > 1:
            raise LayoutError(f"one process converts, but {dist.get_world_size()} joined; convert outside of a run.")
        yield
        return
    groups.join_alone()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _architecture(folder: Path, parallel: Parallel | None = None) -> Architecture:
    architecture = describe(read_config(folder))
    if parallel is not None:
        if parallel.dp * parallel.cp * parallel.ep > 1:
            raise LayoutError(
                "dp, cp and ep replicate or deal what a checkpoint holds once; give tp, pp and vpp alone."
            )
        fit.check(architecture, parallel)
    return architecture


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise SpecError(f"{target} exists; name a folder that does not, or remove it.")


def _tensors(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """These of a Hugging Face folder, one at a time."""
    reader = hf.Reader(folder)
    for name in names:
        yield name, reader.whole(name)
        reader.release()


def _elements(tensors: Mapping[str, Digest]) -> int:
    return sum(math.prod(digest.shape) for digest in tensors.values())
