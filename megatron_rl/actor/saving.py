"""The actor's part of a checkpoint: Megatron's distributed format, readable at any other cut over ranks.

Tensors are saved in the shape the model gives them, moments and main parameters beside their parameter, so a load asks
for the boxes its own cut needs. What is not a tensor, the learning rate's position for one, is JSON.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

FORMAT = {
    # Moments in the model's shapes: only this form can be read at another tensor, pipeline and data parallel size.
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
PROGRESS = "progress.json"


def save(
    folder: Path, chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, progress: Mapping[str, object]
) -> None:
    """Writes the folder; every rank calls this and all return when it is complete."""
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        (folder / PROGRESS).write_text(json.dumps(dict(progress)))
    dist.barrier()
    dist_checkpointing.save(_state(chunks, optimizer, is_loading=False), str(folder), content_metadata=dict(FORMAT))
    dist.barrier()


def load(folder: Path, chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer) -> dict[str, object]:
    """Fills parameters, main parameters and moments, whatever cut saved them; returns the progress saved with them."""
    asked = _state(chunks, optimizer, is_loading=True)
    state = dist_checkpointing.load(asked, str(folder))
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[_part(number)])
    optimizer.load_state_dict(state["optimizer"])
    progress: dict[str, object] = json.loads((folder / PROGRESS).read_text())
    return progress


def _state(chunks: Sequence[MegatronModule], optimizer: MegatronOptimizer, is_loading: bool) -> ShardedStateDict:
    # Which replica writes is told by this group; Megatron would otherwise note it in the dictionary it is given.
    replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {**FORMAT, "dp_cp_group": replicas}
    model = {_part(number): chunk.sharded_state_dict(metadata=metadata) for number, chunk in enumerate(chunks)}
    return {**model, "optimizer": optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)}


def _part(number: int) -> str:
    return f"model{number}"
