"""Programs for the ranks of an actor that say what it really allocated: buffers, moments, saved activations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from megatron_rl.batch.batch import Batch
from megatron_rl.batch.columns import PROMPT_TOKENS
from megatron_rl.objectives.likelihood import Likelihood
from tests.actor.training import actor_of
from tests.fakes.rollouts import rollouts


def batch_of_pairs(pairs: int, multiple: int = 1) -> tuple[Batch, int]:
    """Rollouts of two lengths, and the tokens of a micro-batch that holds one of each, filled up to the multiple."""
    batch = rollouts(groups=1, samples=2 * pairs, lengths=[39, 24] * pairs)
    lengths = [response + int(batch.ragged(PROMPT_TOKENS).length_B[0]) - 1 for response in (39, 24)]
    return batch, sum(length + -length % multiple for length in lengths)


class Saved:
    """Bytes that autograd keeps, parameters not counted: what is alive, and the most there was."""

    def __init__(self, parameters: set[int]) -> None:
        self.parameters, self.alive, self.most = parameters, 0, 0
        self.users: Counter[tuple[int, int]] = Counter()

    def take(self, tensor: torch.Tensor) -> _Held:
        return _Held(self, tensor)


class _Held:
    """One use of a storage; several views of it cost its bytes once."""

    def __init__(self, saved: Saved, tensor: torch.Tensor) -> None:
        self.saved, self.tensor = saved, tensor.detach()
        storage = tensor.untyped_storage()
        self.key = (storage.data_ptr(), storage.nbytes())
        if self.key[0] in saved.parameters:
            return
        saved.users[self.key] += 1
        if saved.users[self.key] == 1:
            saved.alive += self.key[1]
            saved.most = max(saved.most, saved.alive)

    def __del__(self) -> None:
        if self.key[0] in self.saved.parameters:
            return
        self.saved.users[self.key] -= 1
        if not self.saved.users[self.key]:
            self.saved.alive -= self.key[1]


def saved_bytes(folder: Path, batch: Batch, **choices: Any) -> int:
    """The most that autograd kept on this rank during an update."""
    actor = actor_of(folder, **choices)
    saved = Saved({one.untyped_storage().data_ptr() for chunk in actor.model.chunks for one in chunk.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(saved.take, lambda held: held.tensor):
        actor.update(batch, Likelihood())
    return saved.most


def static_bytes(folder: Path, batch: Batch, **choices: Any) -> tuple[int, int, int]:
    """Parameters, gradients and optimizer state of this rank after an update."""
    actor = actor_of(folder, **choices)
    actor.update(batch, Likelihood())
    buffers = [one for chunk in actor.chunks for one in (*chunk.buffers, *chunk.expert_parallel_buffers)]
    weights = _storages([one for chunk in actor.model.chunks for one in chunk.parameters()])
    state = [
        tensor
        for inner in actor.optimizer.megatron.chained_optimizers
        for each in inner.optimizer.state.values()
        for tensor in each.values()
    ]
    main = [one for group in actor.optimizer.megatron.param_groups for one in group["params"]]
    return (
        sum(weights.values()),
        sum(buffer.grad_data.nbytes for buffer in buffers),
        sum(tensor.nbytes for tensor in state)
        # In float32 the optimizer moves the weights themselves.
        + sum(one.nbytes for one in main if one.untyped_storage().data_ptr() not in weights),
    )


def _storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
