"""Megatron-Core's pipeline schedules, run over packed micro-batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_rl.actor.sequences import Packed


class Finished(NamedTuple):
    """What the last stage makes of a micro-batch: its share of the loss, and what to hand back."""

    loss: Tensor
    result: Any


Finish = Callable[[Tensor, Packed], Finished]
"""From this rank's logits, T rows of its part of the vocabulary, and the micro-batch."""


def forward(chunks: Sequence[torch.nn.Module], microbatches: Sequence[Packed], finish: Finish) -> list[Any]:
    """Results in the order of the micro-batches on ranks of the last stage; nothing on others."""
    with torch.no_grad():
        return _run(chunks, microbatches, finish, forward_only=True)


def forward_backward(
    chunks: Sequence[DistributedDataParallel], microbatches: Sequence[Packed], finish: Finish
) -> list[Any]:
    """As `forward`, and leaves in the gradient buffers the sum over micro-batches and data ranks."""
    config = chunks[0].config
    config.finalize_model_grads_func = _finalize
    config.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    for chunk in chunks:
        chunk.zero_grad_buffer()
    return _run(chunks, microbatches, finish, forward_only=False)


def _run(
    chunks: Sequence[torch.nn.Module], microbatches: Sequence[Packed], finish: Finish, forward_only: bool
) -> list[Any]:
    run = get_forward_backward_func()
    results: list[Any] = run(
        forward_step_func=partial(_step, finish),
        # Each chunk walks through the same micro-batches at its own pace.
        data_iterator=[iter(microbatches) for _ in chunks],
        model=list(chunks),
        num_microbatches=len(microbatches),
        seq_length=microbatches[0].tokens_1T.shape[1],
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return results


def _step(finish: Finish, iterator: Any, chunk: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:  # noqa: ANN401
    packed: Packed = next(iterator)
    output = chunk(packed.tokens_1T, None, None, packed_seq_params=packed.sequences)
    return output, partial(_price, finish, packed)


def _price(finish: Finish, packed: Packed, logits_1TV: Tensor) -> tuple[Tensor, Tensor, Any]:
    """Megatron's triple: the loss, the tokens it would divide by later (none: ours has its denominators), results."""
    # A view whose gradient is a view too: an index would have a second copy of the logits made for it.
    finished = finish(logits_1TV.squeeze(0), packed)
    return finished.loss, torch.zeros((), dtype=torch.int, device=finished.loss.device), finished.result


def _finalize(chunks: list[DistributedDataParallel], _tokens: Tensor | None, **kwargs: Any) -> None:  # noqa: ANN401
    """Sums over data ranks, sequence-parallel norms and tied embeddings, without a division by tokens after it."""
    finalize_model_grads(chunks, None, **kwargs)
