"""Ragged columns: flat values and offsets, zero-copy views of Arrow memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.utils.dlpack
from torch import Tensor


class Ragged(NamedTuple):
    """Rows of unequal length: row b is `values[offsets[b]:offsets[b + 1]]`.

    Ragged.of([[1, 2], [], [3]]) has values [1, 2, 3] and offsets [0, 2, 2, 3].
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], dtype: torch.dtype | None = None) -> Ragged:
        flat = [value for row in rows for value in row]
        return cls.from_lengths(
            torch.tensor(flat, dtype=dtype), torch.tensor([len(row) for row in rows], dtype=torch.int64)
        )

    @classmethod
    def from_lengths(cls, values: Tensor, length_B: Tensor) -> Ragged:
        _refuse_negative(length_B)
        return cls(values, torch.cat([length_B.new_zeros(1), length_B.cumsum(0)]))

    @property
    def length_B(self) -> Tensor:
        return self.offsets.diff()

    @property
    def row_T(self) -> Tensor:
        """The row each flat value belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.length_B)

    def row(self, index: int) -> Tensor:
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def rows(self) -> list[Tensor]:
        return list(torch.split(self.values, self.length_B.tolist()))

    def take(self, index_B: Tensor) -> Ragged:
        """Rows in the given order."""
        pieces = [self.values[piece] for piece in self.pieces(index_B)]
        return Ragged.from_lengths(torch.cat([self.values[:0], *pieces]), self.length_B[index_B])

    def pieces(self, index_B: Tensor) -> list[slice]:
        """Where the values of these rows are. Neighbours that stay neighbours are one piece."""
        breaks = (index_B.diff() != 1).nonzero().flatten()
        first_N = self.offsets[torch.cat([index_B[:1], index_B[breaks + 1]])]
        last_N = self.offsets[torch.cat([index_B[breaks], index_B[-1:]]) + 1]
        return [slice(first, last) for first, last in zip(first_N.tolist(), last_N.tolist(), strict=True)]

    def head(self, length_B: Tensor) -> Ragged:
        """The first `length_B` values of each row."""
        _refuse_negative(length_B)
        if bool((self.length_B <= length_B).all()):
            return self
        kept_T = self._is_within_T(length_B)
        return Ragged.from_lengths(self.values[kept_T], torch.minimum(length_B, self.length_B))

    def behind(self, length_B: Tensor) -> Ragged:
        """What follows the first `length_B` values of each row."""
        _refuse_negative(length_B)
        return Ragged.from_lengths(self.values[~self._is_within_T(length_B)], (self.length_B - length_B).clamp_min(0))

    def append(self, other: Ragged) -> Ragged:
        """Each row followed by the same row of `other`."""
        count = len(self.offsets) - 1
        both = Ragged.from_lengths(
            torch.cat([self.values, other.values.to(self.values.dtype)]), torch.cat([self.length_B, other.length_B])
        )
        interleaved = both.take(torch.arange(2 * count).view(2, count).T.flatten())
        return Ragged.from_lengths(interleaved.values, self.length_B + other.length_B)

    def _is_within_T(self, length_B: Tensor) -> Tensor:
        """Which values are among the first `length_B` of their row."""
        within_T = torch.arange(len(self.values)) - torch.repeat_interleave(self.offsets[:-1], self.length_B)
        return within_T < torch.repeat_interleave(length_B, self.length_B)


def view_tensor(array: pa.Array) -> Tensor:
    """The numbers of an Arrow array as a tensor on the same memory. Arrow is immutable: nobody may write here."""
    return torch.utils.dlpack.from_dlpack(array)


def view_ragged(array: pa.LargeListArray) -> Ragged:
    offsets = view_tensor(array.offsets)
    start, stop = int(offsets[0]), int(offsets[-1])
    return Ragged(view_tensor(array.values.slice(start, stop - start)), offsets - start)


def arrow_ragged(ragged: Ragged, type: pa.DataType) -> pa.LargeListArray:
    """A copy of the rows as Arrow holds them. Offsets that are no rows of the values are refused."""
    offsets = _contiguous(ragged.offsets)
    if not len(offsets) or offsets[0] < 0 or offsets[-1] > len(ragged.values) or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"offsets must rise from 0 or more to at most {len(ragged.values)}, the number of values, "
            f"got {np.array2string(offsets, threshold=8)}"
        )
    values = owned_array(_contiguous(ragged.values), type.value_type)
    return pa.LargeListArray.from_arrays(owned_array(offsets, pa.int64()), values)


def take_ragged(array: pa.LargeListArray, index_B: Tensor) -> pa.LargeListArray:
    """Rows in the given order, several times as fast as Arrow, which moves their values one by one."""
    ragged = view_ragged(array)
    values = ragged.values.numpy()  # whose slices cost a tenth of a tensor's
    taken = np.concatenate([values[:0], *(values[piece] for piece in ragged.pieces(index_B))])
    offsets = Ragged.from_lengths(ragged.values[:0], ragged.length_B[index_B]).offsets
    return pa.LargeListArray.from_arrays(pa.array(offsets.numpy()), pa.array(taken), type=array.type)


def owned_array(values: np.ndarray, type: pa.DataType) -> pa.Array:
    """The values in memory that nobody else writes into: Arrow converts into its own, but borrows what needs none."""
    array = pa.array(values).cast(type)
    held = array.buffers()[1] if len(array) else None
    is_borrowed = held is not None and np.may_share_memory(np.frombuffer(held, dtype=np.uint8), values)
    return pa.array(values.copy(), type=type) if is_borrowed else array


def _contiguous(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()


def _refuse_negative(length_B: Tensor) -> None:
    if bool((torch.as_tensor(length_B) < 0).any()):
        raise ValueError(f"a row's length cannot be negative, got {int(torch.as_tensor(length_B).min())}")
