"""What a Megatron checkpoint may make a process call before any of it is loaded: only what builds tensors and plans.

Megatron pickles its table of contents, its objects and its common part, and loads them by calling what they name. A
manifest finds damage and no forger, so the names are looked at first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_rl.actor import table
from megatron_rl.actor.pickled import LOADS_BYTES, TENSORS, look_through, look_through_archive
from megatron_rl.spec.schema import SpecError

_RECIPES = ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling")
SCALES = TENSORS | {
    *(f"transformer_engine.common.recipe {name}" for name in (*_RECIPES, "Format", "_FormatHelper")),
    *(f"transformer_engine.common.recipe {name}" for name in ("MMParams", "QParams")),
    LOADS_BYTES,
}
"""What the state of Transformer Engine's FP8 recipes names."""


_BACKENDS = {"sharded_backend": "torch_dist", "common_backend": "torch"}


def check(folder: Path) -> table.Table:
    """What the checkpoint holds, if loading calls only what is known; SpecError, naming what it calls, otherwise."""
    _check_backends(folder / "metadata.json")
    told = table.read(folder)
    look_through_archive(_bytes_of(folder / "common.pt"), TENSORS, str(folder / "common.pt"))
    harmless: set[bytes] = set()  # layers that have no state all say so in the same bytes
    for piece in told.objects:
        content = _bytes_of(piece.file, piece.offset, piece.length)
        if content not in harmless:
            look_through_archive(content, TENSORS, f"{piece.file}, {piece.length} bytes from {piece.offset}")
            harmless.add(content)
    _check_tensors(told)
    return told


def check_states(state: Mapping[str, object], where: str) -> None:
    """The same for the states of modules, which Transformer Engine keeps as tensors of pickled bytes."""
    for name, value in state.items():
        if not name.endswith("_extra_state") or value is None:
            continue
        if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8:
            raise SpecError(f"{where}: '{name}' should be a tensor of bytes or nothing, got {type(value).__name__}.")
        if value.numel():
            look_through(value.detach().cpu().numpy().tobytes(), SCALES, f"{where}: '{name}'")


def _check_tensors(told: table.Table) -> None:
    """Torch loads tensors by weights alone, which calls nothing but builds whatever they say; ranks share the work."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    pieces = [piece for tensor in told.tensors.values() for piece in tensor.pieces.values()]
    for piece in pieces[rank::ranks]:
        where = f"{piece.file}, {piece.length} bytes from {piece.offset}"
        try:
            with piece.file.open("rb") as stream:
                view = cast(BinaryIO, _create_file_view(stream, piece.offset, piece.length))
                look_through_archive(view, TENSORS, where)
        except OSError as error:
            raise SpecError(f"{where} cannot be read ({error}).") from None


def _check_backends(path: Path) -> None:
    """Only the formats that are looked through here."""
    try:
        said = json.loads(path.read_text())
        found = {name: said[name] for name in _BACKENDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} does not say which format this checkpoint has ({error!r}).") from None
    if found != _BACKENDS:
        raise SpecError(f"{path} says {found}, but only {_BACKENDS} can be loaded; convert the checkpoint first.")


def _bytes_of(path: Path, offset: int = 0, length: int = -1) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error}), so this is no Megatron distributed checkpoint.") from None
