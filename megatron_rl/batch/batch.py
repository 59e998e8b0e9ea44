"""The immutable table of rollouts: one row is one rollout, from the moment its prompt is drawn to the loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from megatron_rl.batch.columns import DICTIONARY, GROUP, TOKENS, Column
from megatron_rl.batch.ragged import Ragged, arrow_ragged, owned_array, take_ragged, view_ragged, view_tensor

Values: TypeAlias = Tensor | Ragged | np.ndarray | Sequence[object]
_METRICS = b"metrics"


class Batch:
    """An Arrow table whose columns are declared in `columns.py` or by the stage that writes them.

    batch[REWARD] is a tensor, batch[TOKENS] a `Ragged`, batch[SOURCE] a list of strings. Nothing changes in place:
    `batch.with_columns({REWARD: reward_B})` is a new batch that shares every other column's memory. What is written is
    copied, and a row column is read as a copy. The values of a token column, which are large, are read as a view, and
    torch knows no read-only tensors: whoever wants to change them in place must `clone()` them first. `metrics` are
    numbers that stages say about the batch as a whole; they travel with it.
    """

    __slots__ = ("table",)

    def __init__(self, table: pa.Table) -> None:
        self.table: pa.Table = table if _is_whole(table) else table.combine_chunks()

    @classmethod
    def of(cls, columns: Mapping[Column, Values]) -> Batch:
        arrays = {column.name: _arrow(column, values) for column, values in columns.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"a batch's columns must have one value per rollout, got the lengths {lengths}")
        return cls(pa.table(arrays))._fitting(columns)

    @classmethod
    def concat(cls, batches: Iterable[Batch]) -> Batch:
        """The rows of all, in order. All must have the same columns; later metrics win."""
        parts = list(batches)
        if not parts:
            raise ValueError("Batch.concat needs at least one batch, got none")
        names = parts[0].table.column_names
        for part in parts[1:]:
            if differing := set(part.table.column_names) ^ set(names):
                raise ValueError(f"cannot concat batches with other columns: only one side has {sorted(differing)}")
            for field in part.table.select(names).schema:
                if field.type != (first := parts[0].table.schema.field(field.name).type):
                    raise ValueError(
                        f"cannot concat: column '{field.name}' is {first} in one batch, {field.type} in another"
                    )
        merged = {name: value for part in parts for name, value in part.metrics.items()}
        filled = [part for part in parts if len(part)] or parts[:1]  # an empty part would cost a copy of the others
        table = pa.concat_tables([part.table.select(names).replace_schema_metadata(None) for part in filled])
        return cls(table).with_metrics(merged) if merged else cls(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __contains__(self, column: Column) -> bool:
        return bool(self.table.schema.get_field_index(column.name) >= 0)

    def __getitem__(self, column: Column) -> Tensor | Ragged | list[str]:
        array = self._array(column)
        if column.is_ragged:
            return view_ragged(array)
        return array.to_pylist() if pa.types.is_string(column.type) else view_tensor(array).clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and content is large

    def __repr__(self) -> str:
        return f"Batch({len(self)} rollouts: {', '.join(self.table.column_names)})"

    def numbers(self, column: Column) -> Tensor:
        values = self[column]
        if not isinstance(values, Tensor):
            raise TypeError(f"column '{column.name}' holds {column.type}, not one number per rollout")
        return values

    def ragged(self, column: Column) -> Ragged:
        values = self[column]
        if not isinstance(values, Ragged):
            raise TypeError(f"column '{column.name}' holds {column.type}, not a list per rollout")
        return values

    def strings(self, column: Column) -> list[str]:
        values = self[column]
        if not isinstance(values, list):
            raise TypeError(f"column '{column.name}' holds {column.type}, not text")
        return values

    @property
    def metrics(self) -> dict[str, float]:
        metadata = self.table.schema.metadata or {}
        return dict(json.loads(metadata[_METRICS])) if _METRICS in metadata else {}

    def with_metrics(self, metrics: Mapping[str, float]) -> Batch:
        merged = {**self.metrics, **{name: float(value) for name, value in metrics.items()}}
        metadata = {**(self.table.schema.metadata or {}), _METRICS: json.dumps(merged).encode()}
        return Batch(self.table.replace_schema_metadata(metadata))

    def with_columns(self, new: Mapping[Column, Values] | None = None, /, **named: Values) -> Batch:
        """A batch with these columns written or replaced. Names are looked up in the data dictionary."""
        columns = dict(new or {}) | {_declared(name): values for name, values in named.items()}
        arrays = {pa.field(column.name, column.type): _arrow(column, values) for column, values in columns.items()}
        for field, array in arrays.items():
            if len(array) != len(self):
                raise ValueError(f"column '{field.name}' needs one value per rollout: {len(self)}, got {len(array)}")
        return self._with(arrays)._fitting(columns)

    def beside(self, other: Batch) -> Batch:
        """A batch with the columns of another one of the same rows written or replaced, in the other's memory."""
        return self._with(dict(zip(other.table.schema, other.table.columns, strict=True)))

    def followed_by(self, other: Batch) -> Batch:
        """The other's rows behind these, under these columns and metrics; a column it lacks is empty or zero there."""
        columns = [other._array_or_nothing(field) for field in self.table.schema]
        return Batch(pa.concat_tables([self.table, pa.Table.from_arrays(columns, schema=self.table.schema)]))

    def _array_or_nothing(self, field: pa.Field) -> pa.Array:
        if self.table.schema.get_field_index(field.name) >= 0:
            return _whole(self.table.column(field.name))
        if pa.types.is_large_list(field.type):
            return pa.array([[]] * len(self), type=field.type)
        return pa.array([""] * len(self) if pa.types.is_string(field.type) else np.zeros(len(self)), type=field.type)

    def _with(self, arrays: Mapping[pa.Field, pa.Array | pa.ChunkedArray]) -> Batch:
        table = self.table
        for field, array in arrays.items():
            place = table.schema.get_field_index(field.name)
            table = table.append_column(field, array) if place < 0 else table.set_column(place, field, array)
        return Batch(table)

    def without(self, *columns: Column) -> Batch:
        return Batch(self.table.drop_columns([column.name for column in columns if column in self]))

    def select(self, columns: Iterable[Column]) -> Batch:
        return Batch(self.table.select([column.name for column in columns]))

    def where(self, keep_B: Tensor) -> Batch:
        """The rows that a mask keeps, in order."""
        if keep_B.dtype not in (torch.bool, torch.uint8) or keep_B.shape != (len(self),):
            raise ValueError(
                f"`where` needs a mask of {len(self)} values, bool or uint8, got {keep_B.dtype} of shape "
                f"{tuple(keep_B.shape)}; row numbers go to `take`"
            )
        return self if bool(keep_B.all()) else self.take(keep_B.nonzero().flatten())

    def take(self, index_B: Tensor) -> Batch:
        """These rows, in this order."""
        if torch.equal(index_B, torch.arange(len(self))):
            return self
        if not len(index_B):
            return Batch(self.table.slice(0, 0))
        rows = pa.array(index_B.numpy())
        columns = [
            take_ragged(_whole(column), index_B) if pa.types.is_large_list(column.type) else column.take(rows)
            for column in self.table.columns
        ]
        return Batch(pa.Table.from_arrays(columns, schema=self.table.schema))

    def group_index(self) -> Tensor:
        """`group_B`: dense group numbers 0..G-1 in order of first appearance."""
        return self.index(GROUP)

    def groups(self) -> list[Batch]:
        """One batch per group, in order of first appearance."""
        return [self.take(rows) for rows in self.group_rows()]

    def group_rows(self) -> list[Tensor]:
        """The row numbers of each group, in order of first appearance."""
        group_B = self.group_index()
        order_B = torch.argsort(group_B, stable=True)
        return list(torch.split(order_B, torch.bincount(group_B).tolist())) if len(self) else []

    def write_parquet(self, path: Path) -> None:
        """Numbers hardly repeat: a dictionary pays for text alone, and nobody asks for the extremes of a column."""
        text = [field.name for field in self.table.schema if pa.types.is_string(field.type)]
        with pa.OSFile(str(path), "wb") as file:
            pq.write_table(self.table, file, use_dictionary=text, write_statistics=False)

    @classmethod
    def read_parquet(cls, path: Path) -> Batch:
        table = pq.read_table(path, memory_map=True)
        return cls(table)

    def index(self, column: Column) -> Tensor:
        """Dense numbers 0.. of a column's distinct values, in order of first appearance."""
        codes = self._array(column).dictionary_encode().indices
        return torch.from_numpy(codes.to_numpy(zero_copy_only=False).astype(np.int64))

    def _fitting(self, written: Iterable[Column]) -> Batch:
        """Itself, if what was written has a value for every response token where it should."""
        fitted = [column for column in written if column.is_per_token and TOKENS in self]
        for column in fitted:
            length_B, expected_B = self.ragged(column).length_B, self.ragged(TOKENS).length_B
            if not torch.equal(length_B, expected_B):
                row = int((length_B != expected_B).nonzero()[0])
                raise ValueError(
                    f"column '{column.name}' needs one value per response token: row {row} has {int(expected_B[row])} "
                    f"tokens, got {int(length_B[row])} values"
                )
        return self

    def _array(self, column: Column) -> pa.Array:
        if column in self:
            return _whole(self.table.column(column.name))
        if column.default is not None:
            return pa.array(np.full(len(self), column.default), type=column.type)
        raise KeyError(f"the batch has no column '{column.name}' ({column.meaning}); it has {self.table.column_names}")


def _is_whole(table: pa.Table) -> bool:
    return all(chunked.num_chunks <= 1 for chunked in table.columns)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)


def _declared(name: str) -> Column:
    if name not in DICTIONARY:
        raise KeyError(
            f"column '{name}' is not in the data dictionary; pass {{COLUMN: values}} for a column of your own"
        )
    return DICTIONARY[name]


def _arrow(column: Column, values: Values) -> pa.Array:
    array = _convert(column, values)
    if missing := array.null_count + (array.values.null_count if column.is_ragged else 0):
        raise ValueError(f"column '{column.name}' has {missing} missing values; a batch has none")
    return array


def _convert(column: Column, values: Values) -> pa.Array:
    if isinstance(values, Ragged):
        try:
            return arrow_ragged(values, column.type)
        except ValueError as error:
            raise ValueError(f"column '{column.name}': {error}") from None
    if isinstance(values, Tensor):
        values = values.detach().cpu().contiguous().numpy()
    if isinstance(values, np.ndarray) and not column.is_ragged:
        return owned_array(values, column.type)
    return pa.array(list(values), type=column.type)
