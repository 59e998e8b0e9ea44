"""Adam in the shape of the fused optimizers, for machines that have neither Transformer Engine nor apex.

Megatron-Core's distributed optimizer saves and loads what those packages keep: two moments per parameter, and one
step count per group. torch's own AdamW counts per parameter, which the reshardable checkpoint cannot load.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class Adam(torch.optim.Optimizer):
    """AdamW; `step` stands in the group and counts for all its parameters, also where this rank holds none of them."""

    def __init__(self, params: Iterable[dict[str, Any]], *, adam_w_mode: bool = True, **fields: Any) -> None:  # noqa: ANN401
        if not adam_w_mode:
            raise ValueError("this Adam decays weights beside the gradient, got adam_w_mode=False")
        super().__init__(params, {name: fields[name] for name in ("lr", "weight_decay", "betas", "eps")})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every parameter with a gradient, in one kernel where torch has it."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._moments(parameter) for parameter in parameters]
        # The kernel counts up a tensor per parameter; the count itself lives in the group.
        before = torch.full((len(parameters),), float(group["step"] - 1), device=parameters[0].device)
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]  # filtered above
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            list(before.unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def install() -> None:
    """Lets Megatron-Core find this Adam where it looked for a fused one and found none."""
    builder: Any = import_module("megatron.core.optimizer")
    distributed: Any = import_module("megatron.core.optimizer.distrib_optimizer")
    if builder.USING_PYTORCH_OPTIMIZER:
        builder.Adam = distributed.Adam = Adam
        builder.USING_PYTORCH_OPTIMIZER = False
        distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
