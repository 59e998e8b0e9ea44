"""Weights from a Hugging Face folder into the actor's parameters and back: two plans between the same two layouts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_rl.actor import safetensors_folder as hf
from megatron_rl.actor.adapter import Merged
from megatron_rl.actor.architecture import HfConfig
from megatron_rl.actor.build import Model
from megatron_rl.actor.durable import replacing
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.reshard.bundles import SliceCopy
from megatron_rl.reshard.engines import huggingface_layout
from megatron_rl.reshard.layout import Box, Key, Layout
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.megatron import megatron_layout
from megatron_rl.reshard.names import Modules
from megatron_rl.reshard.placement import together
from megatron_rl.reshard.plan import plan, plan_rank
from megatron_rl.reshard.transport import Boxes
from megatron_rl.spec.schema import SpecError

WRITER = 0
"""The rank that writes a folder."""

SHARD_BYTES = 4 * 2**30
"""Size of an exported file."""


def read_config(folder: Path) -> HfConfig:
    """The folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise SpecError(f"{path} does not exist; point the model at a Hugging Face folder.")
    return hf.read_json(path)


def named_dtype(folder: Path, default: torch.dtype) -> torch.dtype:
    """The type that the folder's config.json names, so that a round trip gives back the same bytes."""
    hf_config = read_config(folder)
    name = hf_config.get("dtype") or hf_config.get("torch_dtype")
    known = {str(dtype).removeprefix("torch."): dtype for dtype in hf.DTYPES.values()}
    return known.get(str(name), default)


def layout(model: Model) -> Layout:
    """What every rank of this actor holds."""
    modules: Modules = "transformer_engine" if has_transformer_engine() else "local"
    return megatron_layout(
        model.architecture.shape, model.parallel, modules=modules, vocabulary=model.padded_vocabulary, head=model.head
    )


def parameters(model: Model) -> dict[Key, Tensor]:
    """This rank's parameters by the names that layouts use, without what stands beside them."""
    beside = {parameter for adapter in model.adapters.values() for parameter in adapter.parameters()}
    return {
        Key(number, name): parameter.data
        for number, chunk in enumerate(model.chunks)
        for name, parameter in chunk.named_parameters()
        if parameter not in beside
    }


def published(model: Model) -> Mapping[Key, Boxes]:
    """What engines and folders get: the parameters, each with the change that stands beside it."""
    plain = parameters(model)
    return {**plain, **{key: Merged(plain[key], adapter) for key, adapter in model.adapters.items()}}


def load(model: Model, folder: Path) -> None:
    """Fills this rank's parameters from the folder; each rank reads its own boxes and nothing else."""
    source, target, rank = huggingface_layout(model.architecture.shape), layout(model), dist.get_rank()
    reader, local = hf.Reader(folder), parameters(model)
    for tensor in target.tensors(rank):
        for box in tensor.zeros:
            _at(local[tensor.key], box).zero_()
    for copy in plan_rank(source, target, rank).copies():
        name = copy.source.key.name
        shape = model.architecture.shape.hf_shape(name)
        _at(local[copy.target.key], copy.target.box).copy_(reader.read(name, shape, copy.source.box))


def export(model: Model, folder: Path, like: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the folder, complete or not at all, with the config and tokenizer of `like` and weights in its type.

    Every rank calls this; boxes stream to the writer in file order, so nobody holds more than one tensor of it.
    """
    target = huggingface_layout(model.architecture.shape)
    contents = hf.Contents(
        shapes={tensor.name: tensor.shape for tensor in target.tensors(0)},
        dtype=named_dtype(like, next(model.chunks[0].parameters()).dtype),
    )
    shards = contents.shards(shard_bytes)
    streamed = _stream(model, target, contents)
    if dist.get_rank() != WRITER:
        for _ in streamed:
            pass
    else:
        with replacing(folder) as aside:
            hf.copy_companions(like, aside)
            for shard in shards:
                hf.write_shard(aside, shard, contents, streamed)
            hf.write_index(aside, contents, shards)
    dist.barrier()


def _stream(model: Model, target: Layout, contents: hf.Contents) -> Iterator[Tensor]:
    """Each Hugging Face tensor in turn: whole on the writer, an empty one on ranks that only send."""
    source, local, rank = layout(model), published(model), dist.get_rank()
    copies: Mapping[str, list[SliceCopy]] = defaultdict(list)
    for copy in plan(source, target, together(source, target)).copies():
        copies[copy.target.key.name].append(copy)
    for name, shape in contents.shapes.items():
        whole = torch.empty(shape if rank == WRITER else 0, dtype=contents.dtype)
        for copy in copies[name]:
            if copy.sender == rank:
                box = local[copy.source.key][slices(copy.source.box)].to("cpu", contents.dtype).contiguous()
                if rank == WRITER:
                    _at(whole, copy.target.box).copy_(box)
                else:
                    dist.send(box, WRITER)
            elif rank == WRITER:
                box = torch.empty([stop - start for start, stop in copy.target.box], dtype=contents.dtype)
                dist.recv(box, copy.sender)
                _at(whole, copy.target.box).copy_(box)
        yield whole


def _at(tensor: Tensor, box: Box) -> Tensor:
    return tensor[slices(box)]
