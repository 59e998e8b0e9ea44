"""The changes of a whole model: put beside its matrices, switched off for a reference, read and written as PEFT does.

R rank of the changes, I inputs and O outputs of a projection.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn import functional

from megatron_rl.actor import peft_folder, weights
from megatron_rl.actor.adapter import WEIGHT, Adapter, Factor
from megatron_rl.actor.build import Model
from megatron_rl.actor.fused import has_transformer_engine
from megatron_rl.actor.lora import LoraSettings, check
from megatron_rl.reshard.local import slices
from megatron_rl.reshard.names import FAMILIES, Cut, Modules

WRITER = weights.WRITER
FUSED_NORM = frozenset((Cut.QKV, Cut.GATE_UP))
"""The matrices into which Transformer Engine fuses the norm in front of them."""


class _Held(NamedTuple):
    """A part of a projection's factor on its way to the writer."""

    factor: Factor
    values: Tensor


def attached(model: Model, settings: LoraSettings, seed: int) -> Model:
    """The model with its weights frozen and a change beside each target: none yet, or that of the adapter to start."""
    check(settings, model.architecture, model.parallel)
    for chunk in model.chunks:
        chunk.requires_grad_(False)
    cuts = _cuts(model)
    adapters = {}
    for matrix in weights.layout(model).tensors(dist.get_rank()):
        cut = cuts.get(matrix.name.split(".", 3)[-1])
        if cut is None:
            continue
        adapter = Adapter(matrix, cut, settings, model.config)
        if adapter.projections:
            _place(model.chunks[matrix.chunk], matrix.name.removesuffix(WEIGHT), adapter)
            adapters[matrix.key] = adapter
    if model.config.recompute_granularity is not None:
        _feel_the_input(model)
    changed = replace(model, adapters=adapters)
    _fill(changed, partial(_fresh, changed, seed) if settings.start is None else _started(changed, settings))
    return changed


@contextmanager
def silent(model: Model) -> Iterator[None]:
    """Within, the model is the one it was before any change."""
    for adapter in model.adapters.values():
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in model.adapters.values():
            adapter.is_on = True


def export(model: Model, folder: Path, settings: LoraSettings, base: Path) -> None:
    """Writes the changes as PEFT's adapter of `base`. Every rank calls this; all return when the folder is there."""
    held: list[list[_Held]] | None = [[] for _ in range(dist.get_world_size())] if dist.get_rank() == WRITER else None
    first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    dist.gather_object(list(_held(model)) if first else [], held, WRITER)
    if held is not None:
        factors: Mapping[str, dict[str, Tensor]] = defaultdict(dict)
        for factor, values in (one for rank in held for one in rank):
            whole = factors[factor.projection].setdefault(
                factor.letter, torch.empty(_shape(model, factor, settings.rank), dtype=values.dtype)
            )
            whole[slices(factor.hf)] = values
        changes = {name: peft_folder.Change(pair["A"], pair["B"]) for name, pair in factors.items()}
        about = peft_folder.About(rank=settings.rank, alpha=settings.alpha)
        peft_folder.write(folder, about, changes, base)
    dist.barrier()


def _place(chunk: torch.nn.Module, name: str, adapter: Adapter) -> None:
    """Beside the linear layer, not in it: Megatron saves a linear layer's own parameters by a fixed list."""
    linear, (parent, leaf) = chunk.get_submodule(name), name.rsplit(".", 1)
    device = next(linear.parameters()).device
    chunk.get_submodule(parent).add_module(f"{leaf}_adapter", adapter.to(device))
    is_fused = has_transformer_engine() and adapter.cut in FUSED_NORM
    adapter.beside(linear, partial(_normalised, linear, adapter.config.layernorm_epsilon) if is_fused else _as_it_is)


def _normalised(linear: torch.nn.Module, eps: float, hidden_S1I: Tensor) -> Tensor:
    weight: Tensor = linear.layer_norm_weight  # type: ignore[assignment]
    return functional.rms_norm(hidden_S1I, weight.shape, weight, eps)


def _as_it_is(hidden_S1I: Tensor) -> Tensor:
    return hidden_S1I


def _feel_the_input(model: Model) -> None:
    """What is computed again gets a gradient only where its input wants one, which a frozen embedding's does not."""
    for chunk in model.chunks:
        if chunk.pre_process:
            chunk.embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())


def _cuts(model: Model) -> dict[str, Cut]:
    """By names inside a layer. Experts' matrices have other names."""
    modules: Modules = "transformer_engine" if has_transformer_engine() else "local"
    table = FAMILIES[model.architecture.shape.family].dense
    linears = (row for row in table if row.local.endswith(WEIGHT) and ".linear_" in row.local)
    return {row.megatron(modules): row.cut for row in linears}


def _fill(model: Model, read: Callable[[Factor], Tensor]) -> None:
    """Writes this rank's parts of whole factors."""
    with torch.no_grad():
        for adapter in model.adapters.values():
            for factor in adapter.factors:
                own: Tensor = getattr(adapter, factor.letter)
                own[slices(factor.at)] = read(factor)[slices(factor.hf)].to(own)


def _fresh(model: Model, seed: int, factor: Factor) -> Tensor:
    """PEFT's law: A uniform within 1 / sqrt(inputs), B zero; each projection has its own draw, the same at any cut."""
    rows, columns = _shape(model, factor, next(iter(model.adapters.values())).rank)
    if factor.letter == "B":
        return torch.zeros(rows, columns)
    named = hashlib.sha256(f"{seed} {factor.projection}".encode()).digest()
    drawn = torch.Generator().manual_seed(int.from_bytes(named[:8], "little") >> 1)
    return (torch.rand(rows, columns, generator=drawn) * 2 - 1) / math.sqrt(columns)


def _started(model: Model, settings: LoraSettings) -> Callable[[Factor], Tensor]:
    assert settings.start is not None, "only called with an adapter to start from"
    changes = peft_folder.read(settings.start, peft_folder.About(rank=settings.rank, alpha=settings.alpha))
    shape = model.architecture.shape
    wanted = {
        name.removesuffix(WEIGHT): shape.hf_shape(name)
        for layer in range(shape.layers)
        for row in FAMILIES[shape.family].dense
        for name in (f"model.layers.{layer}.{hf}" for hf in row.hf)
        if name.removesuffix(WEIGHT).rsplit(".", 1)[-1] in settings.targets
    }
    peft_folder.check(settings.start, changes, wanted)
    return lambda factor: getattr(changes[factor.projection], factor.letter)


def _held(model: Model) -> Iterator[_Held]:
    for adapter in model.adapters.values():
        for factor in adapter.factors:
            own: Tensor = getattr(adapter, factor.letter)
            yield _Held(factor, own.detach()[slices(factor.at)].cpu())


def _shape(model: Model, factor: Factor, rank: int) -> tuple[int, int]:
    """Of the whole factor."""
    rows, columns = model.architecture.shape.hf_shape(factor.projection + WEIGHT)
    return (rank, columns) if factor.letter == "A" else (rows, rank)
