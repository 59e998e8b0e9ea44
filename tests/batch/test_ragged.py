import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.batch.ragged import Ragged, arrow_ragged, owned_array, view_ragged, view_tensor

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=8)
TYPE = pa.large_list(pa.int32())


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [row.tolist() for row in ragged.rows()]


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.of(rows, dtype=torch.int32)


def test_rows_are_slices_between_offsets():
    example = ragged([[1, 2], [], [3]])
    assert example.values.tolist() == [1, 2, 3]
    assert example.offsets.tolist() == [0, 2, 2, 3]
    assert example.row_T.tolist() == [0, 0, 2]
    assert example.row(2).tolist() == [3]


@settings(deadline=None)
@given(ROWS)
def test_arrow_and_back_is_the_same(rows):
    assert as_lists(view_ragged(arrow_ragged(ragged(rows), TYPE))) == rows


@settings(deadline=None)
@given(ROWS, st.data())
def test_take_picks_rows_in_the_given_order(rows, data):
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
    assert as_lists(ragged(rows).take(torch.tensor(index, dtype=torch.int64))) == [rows[i] for i in index]


@settings(deadline=None)
@given(ROWS, st.data())
def test_head_and_append_undo_each_other(rows, data):
    cuts = [data.draw(st.integers(0, len(row))) for row in rows]
    tails = ragged([row[cut:] for row, cut in zip(rows, cuts, strict=True)])
    assert as_lists(ragged(rows).behind(torch.tensor(cuts))) == as_lists(tails)
    heads = ragged(rows).head(torch.tensor(cuts))
    assert as_lists(heads) == [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    assert as_lists(heads.append(tails)) == rows


@pytest.mark.parametrize("length", [torch.tensor([1, -1]), torch.tensor(-1), -1], ids=str)
def test_a_row_has_no_negative_length(length):
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        ragged([[1, 2], [3]]).head(length)


def test_lengths_are_not_negative():
    with pytest.raises(ValueError, match="cannot be negative, got -2"):
        Ragged.from_lengths(torch.arange(3), torch.tensor([3, -2, 2]))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
def test_an_owned_array_has_the_values_and_none_of_their_memory(dtype):
    values = np.array([1, 0, 1], dtype=dtype)
    array = owned_array(values, pa.int32())
    values[:] = 0
    assert array == pa.array([1, 0, 1], type=pa.int32())


def test_a_view_shares_arrow_memory():
    array = arrow_ragged(ragged([[1, 2], [3]]), TYPE)
    assert view_ragged(array).values.data_ptr() == array.values.buffers()[1].address


def test_a_sliced_array_is_viewed_from_its_own_start():
    array = arrow_ragged(ragged([[1, 2], [3], [4, 5]]), TYPE).slice(1, 2)
    assert as_lists(view_ragged(array)) == [[3], [4, 5]]


def test_a_tensor_view_holds_the_numbers():
    assert view_tensor(pa.array([1.5, 2.5])).tolist() == [1.5, 2.5]
