"""A low-rank change beside one frozen matrix of Megatron's, cut over tensor ranks as that matrix is.

A matrix that fuses several projections gets what PEFT would give each of them: the projections' A stand one under the
other, and each row of B belongs to the projection whose row of the fused matrix it changes. Between tensor ranks only
activations of the rank's width travel.

S tokens, P projections with a change, R their rank, I inputs and O outputs of this rank's part of the matrix.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel import layers, mappings
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import functional

from megatron_rl.actor.lora import LoraSettings
from megatron_rl.reshard.layout import Box, LocalTensor, Piece
from megatron_rl.reshard.local import Slices
from megatron_rl.reshard.names import Cut

WEIGHT = ".weight"


class Factor(NamedTuple):
    """Where a part of a projection's A or B lies: Factor("model.layers.0.mlp.up_proj", "A", hf=..., at=...)."""

    projection: str
    letter: str
    hf: Box
    """In the whole factor, as PEFT has it."""
    at: Box
    """In this rank's parameter."""


class Adapter(torch.nn.Module):
    """B A x of this rank's tokens, B starting at zero; `beside` makes it part of what the linear layer gives."""

    def __init__(self, matrix: LocalTensor, cut: Cut, settings: LoraSettings, config: TransformerConfig) -> None:
        super().__init__()
        self.cut, self.rank, self.scale, self.config = cut, settings.rank, settings.scale, config
        self.pieces = tuple(piece for piece in matrix.pieces if _projection(piece).split(".")[-1] in settings.targets)
        self.projections = tuple(dict.fromkeys(map(_projection, self.pieces)))
        self.is_on = True
        (rows, columns), dtype = matrix.shape, config.params_dtype
        self.A = torch.nn.Parameter(torch.zeros(len(self.projections) * self.rank, columns, dtype=dtype))
        self.B = torch.nn.Parameter(torch.zeros(rows, self.rank, dtype=dtype))
        owner_OP = torch.zeros(rows, len(self.projections), dtype=dtype)
        for piece in self.pieces:
            start, stop = piece.at[0]
            owner_OP[start:stop, self.projections.index(_projection(piece))] = 1
        self.owner_OP: Tensor
        self.register_buffer("owner_OP", owner_OP, persistent=False)
        divided, whole = (self.A, self.B) if self.is_row_parallel else (self.B, self.A)
        layers.set_tensor_model_parallel_attributes(divided, True, 1 if self.is_row_parallel else 0, 1)
        # Each tensor rank uses it on its own tokens, and Megatron adds up the gradients of what is marked so.
        whole.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    @property
    def is_row_parallel(self) -> bool:
        """Whether tensor ranks divide the inputs; they divide the outputs otherwise."""
        return self.cut is Cut.COLUMNS

    @property
    def B_OPR(self) -> Tensor:
        """B as it meets all the A at once: (O, P * R), zero where a row belongs to another projection."""
        return self._spread(slice(None))

    def forward(self, hidden_S1I: Tensor) -> Tensor:
        """The change of the linear layer's output."""
        narrow_S1PR = functional.linear(hidden_S1I, self.A)
        is_cut = self.config.sequence_parallel
        if self.is_row_parallel:
            join = (
                mappings.reduce_scatter_to_sequence_parallel_region
                if is_cut
                else mappings.reduce_from_tensor_model_parallel_region
            )
        else:
            join = (
                mappings.gather_from_sequence_parallel_region
                if is_cut
                else mappings.copy_to_tensor_model_parallel_region
            )
        return functional.linear(join(narrow_S1PR), self.B_OPR) * self.scale

    def beside(self, linear: torch.nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        """From now on the linear layer's output has the change in it; `normalise` is what it does before it."""

        def changed(_module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:  # noqa: ANN401
            if not self.is_on:
                return output
            product, bias = output
            return product + self(normalise(inputs[0])), bias

        linear.register_forward_hook(changed)

    def change(self, box: Slices) -> Tensor:
        """This box of scale * B A in float32, with which the matrix would be merged."""
        rows, columns = box
        return self.scale * (self._spread(rows).float() @ self.A[:, columns].float())

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """What PEFT's factors have here; the whole one of the two is here on every tensor rank."""
        return tuple(dict.fromkeys(self._factors()))

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """As Megatron saves the matrix beside it, so that another cut can read it."""
        assert metadata is not None, "Megatron is always told how to save"
        made: ShardedStateDict = make_sharded_tensors_for_checkpoint(
            {"A": self.A, "B": self.B},
            prefix,
            {"A": 1} if self.is_row_parallel else {"B": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.cut is Cut.GATE_UP:
            made[f"{prefix}B"] = apply_swiglu_sharded_factory(made[f"{prefix}B"], sharded_offsets)
        return made

    def _spread(self, rows: slice) -> Tensor:
        return (self.owner_OP[rows, :, None] * self.B[rows, None]).flatten(1)

    def _factors(self) -> Iterator[Factor]:
        for piece in self.pieces:
            projection = _projection(piece)
            above, (rows, columns) = self.projections.index(projection) * self.rank, piece.at
            ranks = (0, self.rank)
            yield Factor(projection, "A", (ranks, piece.box[1]), ((above, above + self.rank), columns))
            yield Factor(projection, "B", (piece.box[0], ranks), (rows, ranks))


class Merged(NamedTuple):
    """A frozen matrix with its change, computed for the boxes that are asked for: the whole is never held."""

    weight: Tensor
    adapter: Adapter

    def __getitem__(self, box: Slices) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            weight = self.weight[box]
            return (weight.float() + self.adapter.change(box)).to(weight.dtype)


def _projection(piece: Piece) -> str:
    return piece.name.removesuffix(WEIGHT)
