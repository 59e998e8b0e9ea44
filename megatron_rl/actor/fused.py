"""Which implementation of norms, matrices, attention and optimizer this machine gives, and a norm that follows it."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The package behind each part, for the reader of a run: Fused(norms="torch", optimizer="torch", ...)."""

    norms: str
    linears: str
    attention: str
    optimizer: str
    gradient_accumulation: bool
    """Whether weight gradients are added to the FP32 buffer inside the matrix product (an apex extension)."""


def has_transformer_engine() -> bool:
    """Whether layers come from Transformer Engine: installed, and a GPU to run on."""
    return torch.cuda.is_available() and find_spec("transformer_engine") is not None


def has_apex() -> bool:
    """Whether apex kernels can be used: installed, and a GPU to run on."""
    return torch.cuda.is_available() and find_spec("apex") is not None


def in_use() -> Fused:
    """What the actor runs on here: Transformer Engine before apex before plain torch, the order Megatron-Core takes."""
    engine, apex = has_transformer_engine(), has_apex()
    best = "transformer_engine" if engine else "apex" if apex else "torch"
    return Fused(
        norms=best,
        linears="transformer_engine" if engine else "megatron",
        attention="transformer_engine" if engine else "torch",
        optimizer=best,
        gradient_accumulation=apex and find_spec("fused_weight_gradient_mlp_cuda") is not None,
    )


class RmsNorm:
    """The norm of layers that are not Transformer Engine's: apex's kernel where there is one, torch's otherwise."""

    def __new__(  # type: ignore[misc]  # Megatron calls a class and wants a module
        cls,
        config: Any,  # noqa: ANN401
        hidden_size: int,
        eps: float = 1e-6,
        **_kwargs: object,
    ) -> torch.nn.Module:
        norm: Any = import_module("apex.normalization").MixedFusedRMSNorm if has_apex() else torch.nn.RMSNorm
        module: torch.nn.Module = norm(hidden_size, eps=eps)
        # Under sequence parallelism each tensor rank sees a part of the tokens; Megatron sums gradients so marked.
        module.weight.sequence_parallel = config.sequence_parallel  # type: ignore[union-attr, assignment]
        return module
