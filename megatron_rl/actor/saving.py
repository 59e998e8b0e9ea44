"""The actor's part of a checkpoint: Megatron's distributed format, readable at any other cut over ranks.

Tensors are saved in the shape the model gives them, moments and main parameters beside their parameter, so a load asks
for the boxes its own cut needs. What is not a tensor, the learning rate's position for one, is JSON.
"""

import inspect
import json
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.metadata import Metadata

from megatron_rl.actor import trust
from megatron_rl.actor.side_by_side import side_by_side
from megatron_rl.reshard.layout import LayoutError

FORMAT = {
    # Moments in the model's shapes: only this form can be read at another tensor, pipeline and data parallel size.
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
WEIGHTS = {**FORMAT, "weights_only": True}
"""What a checkpoint without moments says of itself: a converted one."""

PROGRESS = "progress.json"

ARCHIVES = ("iostream error", "PytorchStreamWriter", "inline_container.cc")
"""Words by which torch's archives speak of disks."""

LONGEST_WRITE = timedelta(days=1)
"""Longer than any driver waits for a save, so that it finds the ranks waiting for the slowest one."""

Write: TypeAlias = Callable[[], None]
"""Writes what was set aside; returns when the folder is complete on every rank; OSError where a disk is full."""

_Data: TypeAlias = tuple[list[Any], list[tuple[Any, torch.Tensor]]]
"""What goes into one file: plain values and tensors, each with its place in the table of contents."""


@dataclass(kw_only=True, eq=False)
class Writers:
    """The ranks that write a checkpoint together, as one of them sees them."""

    at: str = ""
    """What this rank is writing its part of, for whoever asks beside; nothing while it waits for another's."""

    @cached_property
    def ranks(self) -> dist.ProcessGroup:
        """For what they tell one another of a save while they are busy with something else."""
        return dist.new_group(backend="gloo", timeout=LONGEST_WRITE)

    @contextmanager
    def part_of(self, folder: Path) -> Iterator[None]:
        self.at = str(folder)
        try:
            yield
        finally:
            self.at = ""


def set_aside(
    folder: Path,
    chunks: Sequence[MegatronModule],
    optimizer: MegatronOptimizer,
    progress: Mapping[str, object],
    writers: Writers,
) -> Write:
    """Copies what is to be saved to host memory, so that the actor may learn on while it is written.

    Every rank calls this, and then what comes back, which is the writers' business alone.
    """
    _ = writers.ranks  # opened here, where all ranks are at once, and not beside
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    _begin(optimizer)
    # Megatron's writer would otherwise start a process that holds a queue between processes, for which the program is
    # imported once more and which outlives a kill. Nothing is put into this one.
    filesystem_async._results_queue = queue.Queue()
    dist.barrier()
    with _disk_errors():
        plan = _planned(folder, chunks, optimizer)
    buckets = [_copied(*bucket) for bucket in plan.writer.write_buckets or ()]
    return partial(_write, folder, plan, buckets, dict(progress), writers)


def load(folder: Path, chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer) -> dict[str, object]:
    """Fills parameters, main parameters and moments, whatever cut saved them; returns the progress saved with them.

    A converted checkpoint has no moments and leaves the optimizer those it has: none in an actor that took no step.
    """
    trust.check(folder)
    content = dist_checkpointing.load_content_metadata(str(folder)) or {}
    has_moments = not content.get("weights_only", False)
    if has_moments and content.get("optimizers", 1) != _optimizers(optimizer):
        raise LayoutError(
            f"{folder} was saved with experts {'dealt' if _optimizers(optimizer) == 1 else 'not dealt'} over ranks, "
            "and their moments are kept apart only where they are; choose actor.ep above 1 in both runs, or in neither."
        )
    asked = _state(chunks, optimizer, is_loading=True) if has_moments else _weights(chunks)
    state = dist_checkpointing.load(asked, str(folder))
    for number in range(len(chunks)):
        trust.check_states(state[_part(number)], str(folder))
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[_part(number)])
    if has_moments:
        optimizer.load_state_dict(state["optimizer"])
    else:
        optimizer.reload_model_params()
    progress: dict[str, object] = json.loads((folder / PROGRESS).read_text())
    return progress


def write_progress(folder: Path, progress: Mapping[str, object]) -> None:
    """What is not a tensor."""
    (folder / PROGRESS).write_text(json.dumps(dict(progress)))


class _Plan(TorchDistSaveShardedStrategy):
    """Which rank writes what, as Megatron deals it out, for us to write: it would fork a process for each file."""

    writer: FileSystemWriterAsync
    contents: Metadata | None
    """The table of contents, on the rank that writes it."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, save_state_dict_ret: tuple[object, Metadata | None, object]
    ) -> AsyncRequest:
        self.writer, self.contents = writer, save_state_dict_ret[1]
        return AsyncRequest(None, (), [])


def _planned(folder: Path, chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer) -> _Plan:
    plan = _Plan("torch_dist", 1)
    content = {**FORMAT, "optimizers": _optimizers(optimizer)}
    state = _state(chunks, optimizer, is_loading=False)
    dist_checkpointing.save(state, str(folder), plan, async_sharded_save=True, content_metadata=content)
    return plan


@contextmanager
def _disk_errors() -> Iterator[None]:
    """What torch's archives say of a disk as the OSError that it is; they keep the reason to themselves."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ARCHIVES):
            raise
        said = f"torch says '{str(error).splitlines()[0]}', as over a full disk"
        raise OSError(f"rank {dist.get_rank()} could not write its part: {said}") from error


def _copied(path: str, key: str, data: _Data) -> tuple[str, str, _Data]:
    """The same file's content, of which the actor changes nothing any more."""
    plain, tensors = data
    tensors.reverse()
    copies = []
    while tensors:  # what was gathered for this save alone goes as its copy comes
        item, tensor = tensors.pop()
        copies.append((item, tensor.detach().to("cpu", copy=True)))
    return path, key, (plain, copies)


def _write(
    folder: Path, plan: _Plan, buckets: Sequence[object], progress: Mapping[str, object], writers: Writers
) -> None:
    """Writes this rank's files, and on the first rank what says where everything is."""
    is_first, told = dist.get_rank() == 0, [""]
    parts: list[Any] = [None] * dist.get_world_size()
    with writers.part_of(folder):
        own = _written(plan, buckets)
    dist.gather_object(own, parts if is_first else None, group=writers.ranks)
    if is_first:
        problems = [f"rank {rank} could not write its part: {part}" for rank, part in enumerate(parts) if _failed(part)]
        with writers.part_of(folder):
            told = problems[:1] or [_completed(folder, plan, parts, progress)]
    dist.broadcast_object_list(told, group=writers.ranks)
    if told[0]:
        raise OSError(told[0])


def _written(plan: _Plan, files: Sequence[object]) -> list[object] | str:
    """What is in the files, or why one could not be written; they are written side by side."""
    transforms = [plan.writer.transforms] if hasattr(plan.writer, "transforms") else []
    # As Megatron has it for a process of its own, it turns the garbage collector off, which here is everybody's.
    write = inspect.unwrap(FileSystemWriterAsync.write_preloaded_data)

    def written(number: int) -> list[object] | Exception:
        answers: queue.Queue[tuple[int, list[object] | Exception]] = queue.Queue()
        pending: queue.Queue[int] = queue.Queue()
        pending.put(number)
        write(transforms, number, files[number], answers, pending, use_fsync=True)
        return answers.get_nowait()[1]

    items: list[object] = []
    for content in side_by_side(written, range(len(files))):
        if isinstance(content, Exception):
            # An archive that is closed over a full disk complains of its own state, and keeps the disk's answer behind.
            met = content.__context__ if isinstance(content.__context__, OSError) else content
            return str(met).splitlines()[0] if str(met) else type(met).__name__
        items += content
    return items


def _failed(part: object) -> bool:
    return isinstance(part, str)


def _completed(folder: Path, plan: _Plan, parts: list[Any], progress: Mapping[str, object]) -> str:
    """Writes what makes a folder of the files; returns what the disk says against it."""
    try:
        assert plan.contents is not None, "the first rank makes the table of contents"
        plan.writer.finish(plan.contents, parts)
        save_config(CheckpointingConfig(plan.backend, plan.version), str(folder))
        write_progress(folder, progress)
    except OSError as error:
        return f"its table of contents could not be written: {error}"
    return ""


def _begin(optimizer: MegatronOptimizer) -> None:
    """Moments of zero after no steps, where there are none yet: a run may be stopped before its first step."""
    for inner in optimizer.chained_optimizers:
        inner.init_state_fn(inner.optimizer, inner.config)
        for group in inner.optimizer.param_groups:
            group.setdefault("step", 0)


def _state(chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, is_loading: bool) -> ShardedStateDict:
    model = _weights(chunks)
    return {**model, "optimizer": optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=_metadata())}


def _weights(chunks: Sequence[MegatronModule]) -> ShardedStateDict:
    return {_part(number): chunk.sharded_state_dict(metadata=_metadata()) for number, chunk in enumerate(chunks)}


def _metadata() -> dict[str, object]:
    # Which replica writes is told by this group; Megatron would otherwise note it in the dictionary it is given.
    return {**FORMAT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def _optimizers(optimizer: MegatronOptimizer) -> int:
    """Megatron gives experts that are dealt over ranks an optimizer of their own."""
    return len(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else 1


def _part(number: int) -> str:
    return f"model{number}"
