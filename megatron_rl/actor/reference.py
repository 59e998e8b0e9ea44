"""The reference policy: a second set of weights on the same ranks, put into the model for the time of a score."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_rl.actor.build import Model
from megatron_rl.actor.weights import parameters
from megatron_rl.reshard.layout import Key


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Weights by the names of this rank's parameters, on the device or, offloaded, in host memory."""

    weights: dict[Key, Tensor]

    @classmethod
    def of(cls, model: Model, offload: bool) -> "Reference":
        """A copy of the weights the model has now."""
        return cls(weights={key: _kept(weight, offload) for key, weight in parameters(model).items()})

    @contextmanager
    def inside(self, model: Model) -> Iterator[None]:
        """The model computes with these weights; on leaving, with the very tensors it had before."""
        local = {
            Key(number, name): parameter
            for number, chunk in enumerate(model.chunks)
            for name, parameter in chunk.named_parameters()
        }
        own = {key: parameter.data for key, parameter in local.items()}
        try:
            for key, weight in self.weights.items():
                parameter = local[key]
                parameter.data = weight.to(parameter.device, non_blocking=True)
            yield
        finally:
            for key, parameter in local.items():
                parameter.data = own[key]


def _kept(weight: Tensor, offload: bool) -> Tensor:
    if not offload or not weight.is_cuda:
        return weight.clone()
    # Page-locked, so that it streams back at the speed of the bus.
    return torch.empty_like(weight, device="cpu", pin_memory=True).copy_(weight)
