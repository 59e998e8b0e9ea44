"""The actor's part of a checkpoint: Megatron's distributed format, readable at any other cut over ranks.

Tensors are saved in the shape the model gives them, moments and main parameters beside their parameter, so a load asks
for the boxes its own cut needs. What is not a tensor, the learning rate's position for one, is JSON.
"""

import json
import queue
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.transformer.module import MegatronModule
from torch.distributed.checkpoint.api import CheckpointException

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


def save(
    folder: Path, chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, progress: Mapping[str, object]
) -> None:
    """Writes the folder; every rank calls this and all return when it is complete; OSError where a disk is full."""
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    _begin(optimizer)
    # What Megatron's writer says is read in this process. Without this it starts another one that holds a queue between
    # processes, for which the program is imported once more and which outlives a kill.
    filesystem_async._results_queue = queue.Queue()
    dist.barrier()
    content = {**FORMAT, "optimizers": _optimizers(optimizer)}
    state = _state(chunks, optimizer, is_loading=False)
    try:
        dist_checkpointing.save(state, str(folder), _WrittenHere("torch_dist", 1), content_metadata=content)
    except CheckpointException as error:
        # torch's is no Exception, and its text is tracebacks; what a rank met says enough.
        rank, (met, _) = min(error.failures.items())
        raise OSError(f"rank {rank} could not write its part: {str(met).splitlines()[0]}") from None
    if dist.get_rank() == 0:
        write_progress(folder, progress)
    dist.barrier()


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


class _WrittenHere(TorchDistSaveShardedStrategy):
    """Megatron's way of writing, but for who writes: it forks a process a file, which a kill would leave for ever."""

    def async_save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> AsyncRequest:
        request = super().async_save(sharded_state_dict, checkpoint_dir)
        if request.async_fn is None:
            return request  # another rank writes all that this one holds
        transforms, _ = request.async_fn.args
        return request._replace(async_fn=partial(_write, transforms))


def _write(transforms: list[object], _rank: int, files: Sequence[object], told: queue.Queue[object]) -> None:
    """Writes the files side by side, and tells what is in each, or the first error, as Megatron's processes do."""

    def written(number: int) -> object:
        answers: queue.Queue[tuple[int, object]] = queue.Queue()
        pending: queue.Queue[int] = queue.Queue()
        pending.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, files[number], answers, pending, use_fsync=True)
        return answers.get_nowait()[1]

    contents = side_by_side(written, range(len(files)))
    # An archive that is closed over a full disk complains of its own state, and keeps the disk's answer behind that.
    errors = [
        content.__context__ if isinstance(content.__context__, OSError) else content
        for content in contents
        if isinstance(content, Exception)
    ]
    told.put(errors[0] if errors else dict(enumerate(contents)))


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
