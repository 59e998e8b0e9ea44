"""One forward pass through however many tensor ranks, stages and chunks, without Megatron's training schedules."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region

from megatron_rl.actor.attention import packing
from megatron_rl.actor.build import Model


def logits(model: Model, tokens_T: Sequence[int], lengths: Sequence[int]) -> np.ndarray | None:
    """Logits over the real vocabulary, T rows, on ranks of the last stage; None on others."""
    parallel, rank = model.parallel, dist.get_rank()
    stride = parallel.tp * parallel.cp * parallel.dp
    ids, packed = torch.tensor([list(tokens_T)]), packing(lengths, torch.device("cpu"))
    rows = len(tokens_T) // (parallel.tp if parallel.splits_sequence else 1)
    output = None
    for position in range(parallel.pp * parallel.vpp):
        if position % parallel.pp != parallel.coordinates(rank).pp:
            continue
        chunk = model.chunks[position // parallel.pp]
        if position:
            received = torch.empty(rows, 1, model.config.hidden_size)
            dist.recv(received, (rank - stride) % parallel.world)
            chunk.set_input_tensor(received)
        output = chunk(ids, None, None, packed_seq_params=packed)
        if position < parallel.pp * parallel.vpp - 1:
            dist.send(output.detach().contiguous(), (rank + stride) % parallel.world)
            output = None
    if output is None or not parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        return None
    gathered = gather_from_tensor_model_parallel_region(output)
    return gathered[0, :, : model.architecture.shape.vocabulary].numpy()
